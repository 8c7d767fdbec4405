"""Losses and metrics that modules report besides their output.

Any module calls `self.sow(LOSSES, name, value)` or `self.sow(METRICS, name, value)` with a scalar.
The training step adds the losses, summed over the layers, to its own. It reports both, the metrics
as means over the layers; a loss whose name begins with '_' is not reported.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

LOSSES, METRICS = 'losses', 'metrics'


def sum_sown(sown: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """Returns the losses, summed over the layers, and the metrics, averaged, by name."""
    losses, metrics = (_by_name(sown.get(collection, {})) for collection in (LOSSES, METRICS))
    return {
        LOSSES: {name: jnp.sum(values) for name, values in losses.items()},
        METRICS: {name: jnp.mean(values) for name, values in metrics.items()},
    }


def _by_name(collection: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the values of all layers by name."""
    values: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(collection):
        name = next(entry.key for entry in reversed(path) if hasattr(entry, 'key'))
        values.setdefault(name, []).append(leaf.reshape(-1))
    return {name: jnp.concatenate(leaves) for name, leaves in values.items()}
