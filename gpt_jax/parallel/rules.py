"""Sharding rules: the one table that maps logical axes to mesh axes."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Activations first, then parameters. None: replicated.
RULES: dict[str, str | tuple[str, ...] | None] = {
    'batch': ('data', 'fsdp', 'expert'),
    'length': 'context',
    'activation': None,
    'layers': None,
    'embed': 'fsdp',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'head_dim': None,
    'latent': 'fsdp',  # inputs of the up-projections of latent attention
    'mlp': 'tensor',
    'experts': 'expert',
    'vocab': 'tensor',
    'positions': None,
}

Rules = Mapping[str, str | tuple[str, ...] | None]


def decoding_rules(mesh: Mesh, *, width: int) -> Rules:
    """Returns the rules for generation with a model of this width, where activations are small.

    Each device keeps its shard of the weights and computes all rows; sums are all-reduced.
    """
    divides = parts('embed', mesh, size=width) > 1
    return RULES | {
        'batch': None,
        'length': None,
        'activation': RULES['embed'] if divides else None,
    }


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Activates the mesh and the rules; without them flax ignores logical constraints."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(rules.items())):
        yield


def axes_of(name: str | None) -> tuple[str, ...]:
    """Returns the mesh axes that a logical axis is sharded over."""
    axes = RULES[name] if name else None
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def parts(name: str, mesh: Mesh, *, size: int = 0) -> int:
    """Returns the number of shards of a dimension with this logical name.

    Returns 1 (replicated) if the number of devices does not divide `size`, when given.
    """
    count = math.prod(mesh.shape[axis] for axis in axes_of(name))
    return count if size % count == 0 else 1


def parameter_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each parameter of a boxed (logically partitioned) tree.

    A dimension is replicated if its mesh axes do not divide it. So is the model width of vectors
    (biases, the scales of norms): sharding saves no memory there, and each would be gathered.

    Raises:
        ValueError: a parameter names an axis that is not in `RULES`; flax would silently
            replicate it.
    """

    def sharding(parameter: nn.Partitioned) -> NamedSharding:
        names = _known(parameter.names)
        is_vector = sum(name != 'layers' for name in names) == 1
        spec = [
            RULES[name]
            if name and _divides(mesh, name, size) and not (is_vector and name == 'embed')
            else None
            for name, size in zip(names, parameter.value.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, boxed, is_leaf=_is_boxed)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Returns the tree as ShapeDtypeStructs with the given shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def undivided(boxed: Any, mesh: Mesh) -> list[str]:
    """Returns the dimensions replicated as the mesh does not divide them: `heads=25 (tensor=2)`."""
    found = {
        f'{name}={size} ({"x".join(f"{axis}={mesh.shape[axis]}" for axis in axes_of(name))})': None
        for parameter in jax.tree.leaves(boxed, is_leaf=_is_boxed)
        for name, size in zip(parameter.names, parameter.value.shape, strict=True)
        if name and not _divides(mesh, name, size)
    }
    return list(found)


def batch_sharding(mesh: Mesh, *, rows_axis: int = 0) -> NamedSharding:
    """Returns the sharding of `[…, B, …]` arrays, rows sharded over the data-parallel axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * rows_axis, RULES['batch']))


def process_rows(mesh: Mesh) -> tuple[int, int]:
    """Returns this process's share of each batch's rows: `(index, count)`.

    Processes whose devices compute the same rows (they shard sequences or heads) have the same
    index.

    Raises:
        ValueError: the rows of two processes overlap without being equal.
    """
    rows = parts('batch', mesh)
    shares: dict[int, set[int]] = {}
    for device, (owned, *_) in batch_sharding(mesh).devices_indices_map((rows,)).items():
        shares.setdefault(device.process_index, set()).update(range(*owned.indices(rows)))
    distinct = sorted({tuple(sorted(share)) for share in shares.values()})
    if sum(map(len, distinct)) != rows or len({len(share) for share in distinct}) > 1:
        raise ValueError(f'the processes of {mesh} split the rows of a batch unevenly: {distinct}')
    mine = shares.get(jax.process_index(), distinct[0])
    return distinct.index(tuple(sorted(mine))), len(distinct)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of replicated arrays."""
    return NamedSharding(mesh, PartitionSpec())


def _divides(mesh: Mesh, name: str, size: int) -> bool:
    return size % parts(name, mesh) == 0


def _known(names: Iterable[str | None]) -> list[str | None]:
    names = list(names)
    if unknown := {name for name in names if name is not None} - RULES.keys():
        raise ValueError(f'logical axes {sorted(unknown)} have no rule in parallel/rules.py')
    return names


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)
