"""The two layouts of the blocks' parameters.

Stored (state, optimizer, checkpoints, golden files): `blocks/attention/…`, every leaf stacked
over the `N` layers. Executed: `blocks/layer_j/…` for the `P` layers of one period, stacked over
the `N/P` periods that `lax.scan` iterates over. The period is the length of the window pattern.
Unrolled execution is one period of all `N` layers, without the leading dimension.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.model.config import ModelConfig


def layers_per_period(config: ModelConfig, *, scan: bool) -> int:
    """Returns `P`, the number of layers in one period of the executed program."""
    return max(1, len(config.window_pattern)) if scan else config.num_layers


def to_executed(params: dict[str, Any], *, period: int) -> dict[str, Any]:
    """Converts stored to executed; leaves are arrays or boxed (`nn.Partitioned`)."""

    def layer(leaf: jax.Array, j: int) -> jax.Array:
        return leaf[j] if leaf.shape[0] == period else leaf[j::period]

    if 'blocks' not in params:  # a subset of the parameters, without those of the blocks
        return params
    blocks = {
        f'layer_{j}': jax.tree.map(lambda leaf, j=j: layer(leaf, j), params['blocks'])
        for j in range(period)
    }
    return {**params, 'blocks': blocks}


def to_stored(params: dict[str, Any], *, num_layers: int) -> dict[str, Any]:
    """Converts executed to stored, for parameters and for gradients."""
    if 'blocks' not in params:
        return params
    blocks = params['blocks']
    period = len(blocks)

    def stack(*leaves: jax.Array) -> jax.Array:
        if period == num_layers:
            return jnp.stack(leaves)
        if period == 1:
            return leaves[0]
        return jnp.stack(leaves, 1).reshape(num_layers, *leaves[0].shape[1:])

    layers = [blocks[f'layer_{j}'] for j in range(period)]
    return {**params, 'blocks': jax.tree.map(stack, *layers)}
