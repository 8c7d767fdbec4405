"""Loading of a source's parameters directly into the shards of this process's devices.

Each device's shard is filled layer by layer and expert by expert, so that a process holds at most
one tensor on the host, besides what its devices own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.fingerprint import named_leaves
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.weights.layout import TABLES
from gpt_jax.weights.source import Source


def load_params(
    source: Source, abstract: Any, *, advance: Callable[[int], None] = lambda count: None
) -> Any:
    """Loads the parameters (stored layout) of a source.

    Args:
      source: the result of a reader.
      abstract: ShapeDtypeStructs of the parameters. Each parameter gets its sharding, or the first
        device if it has none.
      advance: is called with the number of parameters loaded so far.

    Raises:
        UserError: a tensor is missing, unexpected or has another shape.
    """
    leaves = named_leaves(abstract)
    entries = {path: entry for entry in source.layout for path in entry.paths}
    axes = {path: entry.axes for path, entry in entries.items()}
    shapes = {path: leaf.shape[axes.get(path, 0) :] for path, leaf in leaves.items()}
    source.check(shapes)
    groups = parameter_groups(source.model)

    def read(path: str, index: tuple[int, ...]) -> np.ndarray:
        entry = entries[path]
        tensor = source.tensors[entry.name_at(index)].read()
        return tensor if path in TABLES else entry.split(tensor, shapes, groups)[path]

    placed = {}
    for path, leaf in leaves.items():
        placed[path] = _place(leaf, functools.partial(read, path), axes=axes[path])
        advance(sum(each.size for each in placed.values()))
    return jax.tree.unflatten(jax.tree.structure(abstract), placed.values())


def _place(
    leaf: jax.ShapeDtypeStruct, read: Callable[[tuple[int, ...]], np.ndarray], *, axes: int
) -> jax.Array:
    """Loads a parameter; `read` returns the part of it at an index into its first `axes` axes."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shards = []
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        on_device = jax.sharding.SingleDeviceSharding(device)
        if not axes:
            shards.append(jax.device_put(_cut(read(()), index, leaf), on_device))
            continue
        first = [i.indices(size)[0] for i, size in zip(index[:axes], leaf.shape, strict=False)]
        shape = _extent(index, leaf.shape)
        shard = jnp.zeros(shape, leaf.dtype, device=on_device)
        for position in np.ndindex(*shape[:axes]):
            stored = read(tuple(np.add(first, position).tolist()))
            block = jax.device_put(_cut(stored, index[axes:], leaf), on_device)
            shard = _write(shard, block, position)
        shards.append(shard)
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def _cut(tensor: np.ndarray, index: tuple[slice, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Copies a part of a view; rows past its end (a table's padding) are zeros."""
    extent = _extent(index, leaf.shape[-len(index) :]) if index else ()
    found = np.asarray(tensor[index]).astype(leaf.dtype)
    if found.shape == extent:
        return found
    padded = np.zeros(extent, leaf.dtype)
    padded[: len(found)] = found
    return padded


def _extent(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(*i.indices(n))) for i, n in zip(index, shape, strict=True))


@functools.partial(jax.jit, donate_argnums=0)
def _write(shard: jax.Array, block: jax.Array, position: tuple[int, ...]) -> jax.Array:
    block = block.reshape((1,) * len(position) + block.shape)
    return jax.lax.dynamic_update_slice(
        shard, block, (*position, *(0,) * (shard.ndim - len(position)))
    )
