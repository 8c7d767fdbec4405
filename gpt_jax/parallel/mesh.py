"""The device mesh of a run.

The axes, from the slowest connection to the fastest: `data` (replicas of the model, each with its
own sequences), `fsdp` (own sequences; weights are sharded, and gathered when needed; ZeRO,
Rajbhandari et al. 2019, https://arxiv.org/abs/1910.02054), `expert` (own sequences; each device
has some of the experts of a mixture, and tokens travel to them; Lepikhin et al. 2020,
https://arxiv.org/abs/2006.16668), `context` (each sequence sharded) and `tensor` (heads, MLP and
vocabulary sharded; Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053).
"""

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from gpt_jax.config_tree import INT32_MAX, Domain, count, knob
from gpt_jax.errors import UserError

MEMBER = 'member'  # the axis of runs that one program trains, each on one device
AXES = ('data', 'fsdp', 'expert', 'context', 'tensor')
_AXIS_SIZE = Domain(
    int,
    f'must be a whole number from 1 to {INT32_MAX}, or -1: all devices that are left',
    lambda value: value == -1 or 1 <= value <= INT32_MAX,
)


def axis_size(default: int) -> Any:
    """Declares a knob that takes the size of an axis."""
    return knob(default, _AXIS_SIZE)


class ProgramKind(enum.StrEnum):
    JIT = 'jit'
    PMAP = 'pmap'


@dataclasses.dataclass(slots=True, kw_only=True)
class MeshConfig:
    """The device mesh; at most one axis is -1, which takes all devices that are left."""

    data: int = axis_size(-1)  # replicas of the model, each with its own sequences
    fsdp: int = axis_size(1)  # devices that shard the batch and the weights
    expert: int = axis_size(1)  # devices that shard the batch and the experts of a mixture
    tensor: int = axis_size(1)  # devices that shard heads, MLP and vocabulary
    context: int = axis_size(1)  # devices that shard the length of each sequence
    program: ProgramKind = ProgramKind.JIT  # pmap: the older API, supports the data axis only
    slices: int = count(1)  # TPU slices (or other groups with fast links) that `data` spans


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of the given devices, by default all; without a -1, of the first it needs.

    Raises:
        UserError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _sizes(config, len(devices))
    used = devices[: math.prod(sizes.values())]
    if len(used) < len(devices) and jax.process_count() > 1:
        raise UserError(
            f'{_spell(sizes)} leaves {len(devices) - len(used)} of the {len(devices)} devices '
            f'idle, and so perhaps a whole process; set config.mesh.data=-1'
        )
    shape = tuple(sizes[axis] for axis in AXES)
    return Mesh(
        _arrange(shape, used, slices=config.slices), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def make_member_mesh(members: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of the fewest devices, by default of all, that give each the fewest members."""
    devices = jax.devices() if devices is None else list(devices)
    each = -(-members // len(devices))
    used = devices[: -(-members // each)]
    return Mesh(np.array(used), (MEMBER,), axis_types=(AxisType.Auto,))


def _sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """Computes the size of each axis over `count` devices."""
    values = (config.data, config.fsdp, config.expert, config.context, config.tensor)
    sizes = dict(zip(AXES, values, strict=True))
    asked = _spell(sizes)
    free = [axis for axis, size in sizes.items() if size == -1]
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(f'config.mesh.{axis}={size} is not a size; use 1 or more, or -1')
    if len(free) > 1:
        raise UserError(f'{asked}: only one axis can be -1; give the others a size')
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > count:
        raise UserError(f'{asked} needs {fixed} devices and here are {count}; make an axis smaller')
    if free:
        if count % fixed:
            raise UserError(
                f'{asked}: {fixed} does not divide the {count} devices here; change an axis so '
                f'that it does'
            )
        sizes[free[0]] = count // fixed
    if config.slices < 1 or sizes['data'] % config.slices:
        raise UserError(
            f'config.mesh.slices={config.slices} does not divide the data axis, which is '
            f'{sizes["data"]}; change one of them'
        )
    return sizes


def _arrange(shape: tuple[int, ...], devices: Sequence[jax.Device], *, slices: int) -> np.ndarray:
    """Arranges the devices in `shape`, so that the later axes have the faster links."""
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    try:
        return mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]),
            (slices, *[1] * (len(shape) - 1)),
            devices,
            # Devices without slices (CPUs, GPUs) are grouped by process.
            process_is_granule=not hasattr(devices[0], 'slice_index'),
            allow_split_physical_axes=True,
        )
    except ValueError as error:
        raise UserError(f'config.mesh.slices={slices}: {error}') from error


def _spell(sizes: dict[str, int]) -> str:
    return 'config.mesh ' + ' '.join(f'{axis}={size}' for axis, size in sizes.items())
