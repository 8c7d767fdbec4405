"""Logical axes -> mesh axes: the one table that says how everything is sharded."""

from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Activations first, then parameters. None: replicated.
RULES: dict[str, str | None] = {
    'batch': 'data',
    'length': None,
    'activation': None,
    'layers': None,
    'embed': None,
    'heads': None,
    'kv_heads': None,
    'head_dim': None,
    'mlp': None,
    'vocab': None,
    'positions': None,
}


def parameter_shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of each parameter of a boxed (logically partitioned) tree.

    Raises:
        ValueError: a parameter names an axis that `RULES` does not know; flax would silently
            replicate it.
    """

    def sharding(spec: PartitionSpec) -> NamedSharding:
        unknown = {axis for axis in spec if axis is not None} - RULES.keys()
        if unknown:
            raise ValueError(f'logical axes {sorted(unknown)} have no rule in parallel/rules.py')
        return NamedSharding(mesh, PartitionSpec(*(axis and RULES[axis] for axis in spec)))

    specs = nn.get_partition_spec(boxed)
    return jax.tree.map(sharding, specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def batch_sharding(mesh: Mesh, *, rows_axis: int = 0) -> NamedSharding:
    """The sharding of `[…, B, …]` arrays: rows over the data axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * rows_axis, RULES['batch']))


def replicated(mesh: Mesh) -> NamedSharding:
    """One whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
