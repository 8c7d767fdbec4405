"""`shard_map` by logical axis names: runs a function on each device's shard of its arrays.

XLA cannot partition a Pallas kernel, so on a mesh it must be called per device. Flax's logical axis
rules map the names to axes of the current mesh (`jax.set_mesh`). So the model does not depend on
the names of mesh axes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec


def mesh_axes(name: str | None, size: int) -> tuple[str, ...]:
    """Returns the mesh axes that a dimension of this logical name is sharded over; (): replicated.

    A size that is not divisible by the number of devices is replicated. So is every dimension
    without a mesh, and inside a function that already runs per device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = nn.logical_to_mesh_axes((name,))[0] or ()
    axes = (axes,) if isinstance(axes, str) else axes
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return ()
    axes = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def part_index(axes: tuple[str, ...]) -> int | jax.Array:
    """Returns the index of this device's shard of a dimension over `axes`, in a per-device call."""
    return jax.lax.axis_index(axes) if axes else 0


def batch_part() -> tuple[int | jax.Array, int]:
    """Returns (index, count) of this replica's share of the batch, under a mapped axis 'batch'.

    `jax.pmap(axis_name='batch')` maps it. Elsewhere arrays are whole: (0, 1).
    """
    if 'batch' not in jax.sharding.get_abstract_mesh().axis_names:
        return 0, 1
    return jax.lax.axis_index('batch'), jax.lax.axis_size('batch')


def mean_over_replicas(x: jax.Array) -> jax.Array:
    """Averages over replicas under a mapped axis 'batch' (`batch_part`); else returns `x`."""
    return x if batch_part()[1] == 1 else jax.lax.pmean(x, 'batch')


def shard_map(
    function: Callable[..., Any],
    arrays: Sequence[jax.Array],
    axes: Sequence[PartitionSpec],
    out_axes: Any,
) -> Any:
    """Calls `function(*arrays)` on each device's shards of the named dimensions.

    `axes` has the logical names of each array's dimensions (None: replicated). `out_axes` has the
    names for the result, or for each of its leaves. A name there that no argument has is a mesh
    axis. Without a mesh, with one device, or inside a function that already runs per device, this
    is a plain call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return function(*arrays)
    split = {
        name: mesh_axes(name, size)
        for array, names in zip(arrays, axes, strict=True)
        for name, size in zip(names, array.shape, strict=True)
    }

    def spec(names: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(split.get(name, name) or None for name in names))

    return jax.shard_map(
        function,
        in_specs=tuple(spec(names) for names in axes),
        out_specs=jax.tree.map(
            spec, out_axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
        ),
        check_vma=False,
    )(*arrays)
