"""LoRA: adapters of low rank on frozen kernels (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

A target W `[N, inputs, outputs]` acts as W + alpha / rank * A B with A `[N, inputs, rank]` and
B `[N, rank, outputs]`. The sum is formed before the model is applied, so the model knows nothing
of it and every kernel, sharding and layout works as without. B begins at zero: the first loss is
that of W. Adapters stand at the path of their kernel: `blocks/attention/query/kernel/lora_a`.
"""

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gpt_jax.config_tree import fraction, positive, whole
from gpt_jax.optim.param_groups import Group, group_of, matrix_axes

A, B = 'lora_a', 'lora_b'
Leaves = dict[str, Any]  # by path; arrays or their boxes (`flax.linen.Partitioned`)


@dataclasses.dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Adapters instead of training the weights themselves."""

    rank: int = whole(0)  # of the adapters; 0: no adapters, the weights are trained
    alpha: float = positive(16.0)  # adapters are scaled by alpha / rank
    dropout: float = fraction(0.0)  # of the adapters' input features; one for a micro-batch
    targets: tuple[str, ...] = ('blocks/attention/(query|value)/kernel',)  # paths, as regexes


def can_adapt(path: str) -> bool:
    """Whether the parameter at `path` is one that adapters are for: a kernel of the blocks."""
    return group_of(path) is Group.HIDDEN


def init_adapters(kernels: Leaves, config: LoraConfig, key: jax.Array) -> Leaves:
    """Fresh adapters in float32: A of standard deviation 1 / sqrt(inputs), B zero.

    Args:
      kernels: the targets in the stored layout. Boxed ones give boxed adapters, so that the
        dimensions of A and B are sharded as those of the kernel that they come from.
      config: gives the rank.
      key: each kernel draws from it by its path, whatever the other targets.
    """
    adapters = {}
    for path, kernel in kernels.items():
        shape = nn.unbox(kernel).shape
        layers, *_ = shape
        inputs, outputs = (
            tuple(shape[axis] for axis in axes) for axes in matrix_axes(path, len(shape))
        )
        draw = jax.random.normal(_key_of(path, key), (layers, *inputs, config.rank), jnp.float32)
        a = draw / math.sqrt(math.prod(inputs))
        b = jnp.zeros((layers, config.rank, *outputs), jnp.float32)
        if isinstance(kernel, nn.Partitioned):
            names, split = kernel.names, 1 + len(inputs)
            a = kernel.replace(value=a, names=(*names[:split], None))
            b = kernel.replace(value=b, names=(names[0], None, *names[split:]))
        adapters |= {f'{path}/{A}': a, f'{path}/{B}': b}
    return adapters


def merge(base: Leaves, adapters: Leaves, config: LoraConfig) -> Leaves:
    """The weights that the model sees: base + alpha / rank * A B, in the dtype of the base.

    In the stored layout, with a leading axis of layers, or in the executed one without it.
    """
    merged = dict(base)
    for path, kernel in base.items():
        if f'{path}/{A}' in adapters:
            a, b = adapters[f'{path}/{A}'], adapters[f'{path}/{B}']
            layer_axes = tuple(range(a.ndim + b.ndim - 2 - kernel.ndim))
            contracted = ((a.ndim - 1,), (len(layer_axes),))
            product = jax.lax.dot_general(a, b, (contracted, (layer_axes, layer_axes)))
            scaled = config.alpha / config.rank * product
            merged[path] = (kernel.astype(jnp.float32) + scaled).astype(kernel.dtype)
    return merged


def dropout_masks(adapters: Leaves, config: LoraConfig, key: jax.Array) -> Leaves:
    """Factors for adapters in the stored layout: 0 or 1 / (1 - dropout) for each input feature.

    Since A is the first to see the input, zeroing its rows is dropout of the adapter's input with
    one mask for all tokens.
    """
    masks = {}
    for path, leaf in adapters.items():
        if path.endswith(B):
            masks[path] = jnp.ones([1 if axis else size for axis, size in enumerate(leaf.shape)])
        else:
            shape = (*leaf.shape[:-1], 1)
            keep = jax.random.bernoulli(_key_of(path, key), 1 - config.dropout, shape)
            masks[path] = keep.astype(jnp.float32) / (1 - config.dropout)
    return masks


def _key_of(path: str, key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(path.encode()))
