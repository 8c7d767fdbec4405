"""The device mesh of a run."""

import dataclasses

import jax
from jax.sharding import AxisType, Mesh

from gpt_jax.errors import UserError


@dataclasses.dataclass(slots=True, kw_only=True)
class MeshConfig:
    """How the devices are arranged."""

    data: int = -1  # devices that share each batch between them; -1: all


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh over all devices, or over the first `config.data` of them.

    Raises:
        UserError: more devices were asked for than there are.
    """
    devices = jax.devices()
    count = len(devices) if config.data == -1 else config.data
    if not 1 <= count <= len(devices):
        raise UserError(
            f'config.mesh.data={config.data} does not fit the {len(devices)} device(s) here; '
            f'use 1 to {len(devices)}, or -1 for all'
        )
    return jax.make_mesh((count,), ('data',), axis_types=(AxisType.Auto,), devices=devices[:count])
