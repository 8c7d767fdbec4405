"""Stop requests: SIGTERM from a scheduler, Ctrl-C from a person, SIGHUP from a closed terminal."""

import contextlib
import signal
from types import FrameType
from typing import Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.parallel import peers
from gpt_jax.parallel.rules import replicated


class StopSignal:
    """While active, the first SIGTERM, SIGHUP or Ctrl-C is remembered for the loop to poll.

    A second one acts at once, as it would without this. A SIGHUP that was ignored before, as under
    nohup, stays ignored. Works in the main thread only.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __init__(self, answer: str = 'saving'):
        """`answer` is what the process says that it does at the signal."""
        self._answer = answer
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._remember)
            for number in self.SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(
            number, signal.SIG_DFL if number == signal.SIGTERM else self._previous[number]
        )
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(f'\n{self.received.name}: {self._answer}; once more ends at once', flush=True)


class StopAgreement:
    """What the loop polls: in a run of several processes all stop after the same call.

    Each poll sends this process's signal into a maximum over all devices and reads the maximum of
    the poll before, which is the same everywhere. So nobody waits for the devices, and the stop
    comes one call after the signal.

    Attributes:
      received: what was agreed to act on; None so far.
    """

    def __init__(self, signals: StopSignal, mesh: Mesh):
        self.received: signal.Signals | None = None
        self._signals = signals
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._size = mesh.size
        self._maximum = jax.jit(lambda numbers: numbers.max(), out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def requested(self) -> bool:
        """Whether to save and end. All processes must call it after every call of the device."""
        if peers.num_processes() == 1:
            self.received = self._signals.received
            return self.received is not None
        mine = int(self._signals.received or 0)
        local = np.full(len(self._sharding.addressable_devices), mine, np.int32)
        numbers = jax.make_array_from_process_local_data(self._sharding, local, (self._size,))
        previous, self._pending = self._pending, self._maximum(numbers)
        agreed = 0 if previous is None else int(previous)
        self.received = signal.Signals(agreed) if agreed else None
        return self.received is not None
