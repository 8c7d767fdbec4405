"""Numbers that all processes of a run agree on without waiting for the devices."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.parallel import peers
from gpt_jax.parallel.rules import replicated


class Agreement:
    """The maximum of a number over all processes.

    Each poll starts a maximum over all devices and reads that of the previous poll, which all
    processes share. So no process waits for the devices, and a number arrives one poll later. One
    process reads its own number at once.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._size = mesh.size
        self._maximum = jax.jit(lambda numbers: numbers.max(), out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def maximum(self, mine: int) -> int:
        """Returns the agreed number, 0 or more; all processes must make the same calls."""
        if peers.num_processes() == 1:
            return mine
        local = np.full(len(self._sharding.addressable_devices), mine, np.int32)
        numbers = jax.make_array_from_process_local_data(self._sharding, local, (self._size,))
        previous, self._pending = self._pending, self._maximum(numbers)
        return 0 if previous is None else int(previous)
