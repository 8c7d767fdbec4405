"""Normalisation layers; statistics are always float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax.kernels.norm import NORM_KERNELS
from gpt_jax.model.options import CommonConfig, NormKernel, NormKind
from gpt_jax.parameter import Role, declare


class _Norm(nn.Module):
    """Base of the norms: normalizes rows, then applies a learned scale and, if centred, a bias."""

    config: CommonConfig
    kernel: NormKernel = NormKernel.XLA
    axis: str = 'embed'

    centred = False  # whether rows get zero mean, and a bias

    @nn.compact
    def __call__(
        self, x: Float[Array, '... D']
    ) -> tuple[Float[Array, '... D'], Float[Array, '... D']]:
        """Returns the normalized `x` in its dtype, and `x` itself for the residual stream.

        Kernels add up the gradients of the two in their backward pass.
        """
        c = self.config
        if c.norm_zero_centered:
            scale_D = self._vector('scale', nn.initializers.zeros_init(), x.shape[-1])
            scale_D = 1 + scale_D.astype(jnp.float32)
        else:
            scale_D = self._vector('scale', nn.initializers.ones_init(), x.shape[-1])
        bias_D = None
        if self.centred and (c.use_bias or c.norm_bias):
            bias_D = self._vector('bias', nn.initializers.zeros_init(), x.shape[-1])
        return self._normalize(x, scale_D, bias_D)

    def _normalize(
        self, x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        kernel = NORM_KERNELS.get(self.kernel)
        run = normalize if kernel is None else kernel.normalize
        return run(x, scale_D, bias_D, epsilon=self.config.norm_epsilon, centred=self.centred)

    def _vector(self, name: str, init: Callable, size: int) -> Float[Array, 'D']:
        init = declare(init, (self.axis,), role=Role.VECTOR)
        return self.param(name, init, (size,), jnp.dtype(self.config.precision.params))


class LayerNorm(_Norm):
    """Zero mean and unit variance over the last dimension, then a learned scale and bias.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    centred = True


class RMSNorm(_Norm):
    """Unit root mean square over the last dimension, then a learned scale.

    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """


def normalize(
    x: Float[Array, '... D'],
    scale_D: Float[Array, 'D'],
    bias_D: Float[Array, 'D'] | None,
    *,
    epsilon: float,
    centred: bool,
) -> tuple[Float[Array, '... D'], Float[Array, '... D']]:
    """Returns the rows of `x` normalized, scaled and shifted in float32, and `x` itself."""
    y = x.astype(jnp.float32)
    if centred:
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + epsilon)
    y = y * jnp.broadcast_to(scale_D.astype(jnp.float32), x.shape)
    if bias_D is not None:
        y = y + jnp.broadcast_to(bias_D.astype(jnp.float32), x.shape)
    return y.astype(x.dtype), x


NORMS = {NormKind.LAYERNORM: LayerNorm, NormKind.RMSNORM: RMSNorm}
