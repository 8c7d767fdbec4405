"""The two layouts of the blocks' parameters.

Stored (state, optimizer, checkpoints, golden files): `blocks/attention/…`, every leaf stacked
over the `N` layers. Layers whose parameters differ in shape, such as dense ones and mixtures of
experts, have a stack each: `blocks_0`, `blocks_1`, … in the order of their first layers. Executed:
`blocks/layer_j/…` for the `P` layers of one period, stacked over the `N/P` periods that `lax.scan`
iterates over. The period is that of the layers' kinds. Unrolled execution is one period of all `N`
layers, without the leading dimension.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.config_tree import freeze
from gpt_jax.model.config import ModelConfig


class Stack(NamedTuple):
    """Layers whose parameters have equal shapes, and the key of their stacked parameters."""

    name: str
    layers: Sequence[int]


def layer_stacks(config: ModelConfig) -> tuple[Stack, ...]:
    """Returns the stacks of a model; one, 'blocks', unless layers differ in norm or MLP."""
    return _layer_stacks(freeze(config))


@functools.lru_cache(maxsize=16)
def _layer_stacks(config: ModelConfig) -> tuple[Stack, ...]:
    members: dict[Any, list[int]] = {}
    layers = range(config.num_layers)
    for j in layers[: config.period]:
        own = config.of_layer(j)
        members.setdefault((own.norm, own.mlp), []).append(j)
    if len(members) == 1:
        return (Stack('blocks', layers),)
    all_of = ([i for j in kind for i in layers[j :: config.period]] for kind in members.values())
    return tuple(Stack(f'blocks_{i}', tuple(sorted(kind))) for i, kind in enumerate(all_of))


def layers_per_period(config: ModelConfig, *, scan: bool) -> int:
    """Returns `P`, the number of layers in one period of the executed program."""
    return config.period if scan else config.num_layers


def to_executed(params: dict[str, Any], config: ModelConfig, *, scan: bool) -> dict[str, Any]:
    """Converts stored to executed; leaves are arrays or boxed (`nn.Partitioned`).

    `params` may be a part of the parameters.
    """
    period = layers_per_period(config, scan=scan)
    rest, blocks = dict(params), {}
    for stack in layer_stacks(config):
        if stack.name in params:
            layers = [j for j in stack.layers if j < period]
            leaves = rest.pop(stack.name)
            for i, j in enumerate(layers):
                take = functools.partial(_take, i=i, together=len(layers))
                blocks[f'layer_{j}'] = jax.tree.map(take, leaves)
    return rest | ({'blocks': blocks} if blocks else {})


def _take(leaf: jax.Array, *, i: int, together: int) -> jax.Array:
    """Returns the `i`-th of the layers of a period that a stack has together."""
    return leaf[i] if leaf.shape[0] == together else leaf[i::together]


def to_stored(params: dict[str, Any], config: ModelConfig, *, scan: bool) -> dict[str, Any]:
    """Converts executed to stored, for parameters and for gradients, or a part of them."""
    period = layers_per_period(config, scan=scan)
    rest = dict(params)
    blocks = rest.pop('blocks', {})
    for stack in layer_stacks(config):
        names = [f'layer_{j}' for j in stack.layers if j < period]
        layers = [blocks[name] for name in names if name in blocks]
        if layers:
            join = functools.partial(
                _join, size=len(stack.layers), whole=period == config.num_layers
            )
            rest[stack.name] = jax.tree.map(join, *layers)
    return rest


def _join(*leaves: jax.Array, size: int, whole: bool) -> jax.Array:
    """Stacks the layers of a period; `whole` if there is a single period."""
    if whole:
        return jnp.stack(leaves)
    if len(leaves) == 1:
        return leaves[0]
    return jnp.stack(leaves, 1).reshape(size, *leaves[0].shape[1:])
