"""LoRA: low-rank adapters on frozen kernels (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

A target W `[N, inputs, outputs]` is replaced by W + alpha / rank * A B. A is `[N, inputs, rank]`, B
is `[N, rank, outputs]`. The sum is computed before the model is applied, so the model needs no
change, and every kernel, sharding and layout still works. B starts at zero, so the first loss
is that of W. Adapters are stored under their kernel: `blocks/attention/query/kernel/lora_a`.
"""

import dataclasses
import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gpt_jax.config_tree import fraction, positive, whole
from gpt_jax.parameter import Growth, Parameter, ParameterGroups, Role

A, B = 'lora_a', 'lora_b'
Leaves = dict[str, Any]  # by path; arrays or their boxes (`gpt_jax.parameter`)


@dataclasses.dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Settings of LoRA, which trains adapters instead of the weights."""

    rank: int = whole(0)  # of the adapters; 0: no adapters, the weights are trained
    alpha: float = positive(16.0)  # adapters are scaled by alpha / rank
    dropout: float = fraction(0.0)  # of the adapters' input features; one mask per micro-batch
    targets: tuple[str, ...] = ('blocks/attention/(query|value)/kernel',)  # paths, as regexes


def init_adapters(
    kernels: Leaves, config: LoraConfig, key: jax.Array, groups: ParameterGroups
) -> Leaves:
    """Initializes float32 adapters: A normal with standard deviation 1 / sqrt(inputs), B zero.

    Args:
      kernels: the targets in the stored layout. Boxed kernels get boxed adapters, so that the
        axes of A and B are sharded like the kernel's axes.
      config: gives the rank.
      key: folded with the path of each kernel, so a draw does not depend on the other targets.
      groups: the declarations of the kernels.
    """
    adapters = {}
    for path, kernel in kernels.items():
        shape = nn.unbox(kernel).shape
        batch = groups.declared[path].batch_axes  # layers, and experts
        inputs, outputs = (
            tuple(shape[axis] for axis in axes) for axes in groups.matrix_axes(path, len(shape))
        )
        draw = jax.random.normal(
            _key_of(path, key), (*shape[:batch], *inputs, config.rank), jnp.float32
        )
        a = draw / math.sqrt(math.prod(inputs))
        b = jnp.zeros((*shape[:batch], config.rank, *outputs), jnp.float32)
        if isinstance(kernel, Parameter):
            names, split = kernel.names, batch + len(inputs)
            factor = functools.partial(kernel.replace, role=Role.ADAPTER)
            a = factor(
                value=a,
                names=(*names[:split], None),
                inputs=len(inputs),
                growth=Growth(inputs=kernel.growth.inputs),
            )
            b = factor(
                value=b,
                names=(*names[:batch], None, *names[split:]),
                inputs=1,
                growth=Growth(outputs=kernel.growth.outputs),
            )
        adapters |= {f'{path}/{A}': a, f'{path}/{B}': b}
    return adapters


def merge(base: Leaves, adapters: Leaves, config: LoraConfig) -> Leaves:
    """Returns the weights of the model: base + alpha / rank * A B, in the dtype of the base.

    Takes the stored layout, with a leading layer axis, or the executed one without it.
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
    """Draws factors for adapters (stored layout): 0 or 1 / (1 - dropout) per input feature.

    A multiplies the input first, so zeroing its rows is dropout of the adapter's input with the
    same mask for all tokens.
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
