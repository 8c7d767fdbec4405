"""Running a function on each device's own part of its arrays, by logical axis names.

XLA cannot split a Pallas kernel over devices: on a mesh it must be called per device. The names
are mapped by flax's logical axis rules and the mesh is the one that the program runs under
(`jax.set_mesh`), so the model knows no mesh axis by name.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec


def mesh_axes(name: str | None, size: int) -> tuple[str, ...]:
    """What a dimension of this logical name is split over; (): every device has all of it.

    A size that the devices do not divide stays whole. Without a mesh, and inside a function that
    runs per device already, nothing is split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = nn.logical_to_mesh_axes((name,))[0] or ()
    axes = (axes,) if isinstance(axes, str) else axes
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return ()
    axes = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def part_index(axes: tuple[str, ...]) -> int | jax.Array:
    """Which part of a dimension split over `axes` this device has, inside a per-device call."""
    return jax.lax.axis_index(axes) if axes else 0


def batch_part() -> tuple[int | jax.Array, int]:
    """Which part of the batch a function has that is mapped over an axis 'batch', and of how many.

    That is what `jax.pmap(axis_name='batch')` does; elsewhere arrays are whole: part 0 of 1.
    """
    if 'batch' not in jax.sharding.get_abstract_mesh().axis_names:
        return 0, 1
    return jax.lax.axis_index('batch'), jax.lax.axis_size('batch')


def shard_map(
    function: Callable[..., Any],
    arrays: Sequence[jax.Array],
    axes: Sequence[PartitionSpec],
    out_axes: Any,
) -> Any:
    """`function(*arrays)`, each device working on its part of the named dimensions.

    `axes` has the logical names of each array's dimensions (None: never split), `out_axes` those
    of the result or of each of its leaves: names of the arguments', others are mesh axes.
    Without a mesh, with one device, and inside a function that runs per device already, this is a
    plain call.
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
