"""Normalisation layers; statistics are always float32."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax.model.config import ModelConfig, NormKind


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the last dimension, then a learned scale and bias.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    config: ModelConfig
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        """`[..., D] -> [..., D]`, in the input's dtype."""
        x_f32 = x.astype(jnp.float32)
        centred = x_f32 - x_f32.mean(-1, keepdims=True)
        variance = jnp.mean(centred**2, -1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.config.norm_epsilon)
        y = y * _vector(self, 'scale', nn.initializers.ones_init(), x.shape)
        if self.config.use_bias:
            y = y + _vector(self, 'bias', nn.initializers.zeros_init(), x.shape)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Unit root mean square over the last dimension, then a learned scale.

    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    config: ModelConfig
    axis: str = 'embed'

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        """`[..., D] -> [..., D]`, in the input's dtype."""
        x_f32 = x.astype(jnp.float32)
        mean_square = jnp.mean(x_f32**2, -1, keepdims=True)
        y = x_f32 * jax.lax.rsqrt(mean_square + self.config.norm_epsilon)
        return (y * _vector(self, 'scale', nn.initializers.ones_init(), x.shape)).astype(x.dtype)


def _vector(module: LayerNorm | RMSNorm, name: str, init, shape: tuple[int, ...]) -> jax.Array:
    """A learned vector over the last dimension of `shape`, in float32 and broadcast to it."""
    init = nn.with_logical_partitioning(init, (module.axis,))
    vector = module.param(name, init, shape[-1:], jnp.dtype(module.config.param_dtype))
    return jnp.broadcast_to(vector.astype(jnp.float32), shape)


NORMS = {NormKind.LAYERNORM: LayerNorm, NormKind.RMSNORM: RMSNorm}
