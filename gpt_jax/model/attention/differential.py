"""Differential attention: the difference of two softmax maps, which cancels their common noise."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from gpt_jax.errors import UserError
from gpt_jax.model.attention.attend import run_attention, score_options
from gpt_jax.model.attention.base import AttentionContext, BaseAttention
from gpt_jax.model.attention.layer_cache import LayerCache
from gpt_jax.model.linear import Linear
from gpt_jax.model.norm import RMSNorm
from gpt_jax.model.options import AttentionKernel, CommonConfig, Kernels
from gpt_jax.model.position import POSITIONS, rotated_width
from gpt_jax.model.taps import Tapped
from gpt_jax.parameter import Role, declare


@dataclasses.dataclass(slots=True, kw_only=True)
class Differential(BaseAttention):
    """The difference of two softmax maps of half the width each."""

    def make(self, config: CommonConfig, *, kernels: Kernels, window: int, name: str) -> nn.Module:
        """Returns the module."""
        return DifferentialAttention(config, kernels.attention, window, name=name)

    def finalize(self, config: CommonConfig) -> None:
        """Checks the width of heads. Raises UserError if it cannot be halved."""
        multiple = 4 if POSITIONS[config.position].rotate else 2
        rotated = rotated_width(config, config.head_dim // 2) if multiple == 4 else 2
        if config.head_dim % multiple or rotated % 2 or not rotated:
            raise UserError(
                f'config.model.head_dim={config.head_dim} must be a multiple of {multiple} for '
                f'config.model.attention=differential and config.model.position='
                f'{config.position}; change it or config.model.num_heads'
            )

    def cache_shapes(self, config: CommonConfig) -> dict[str, tuple[int, int]]:
        """Returns the shapes of the keys of both maps, and of the values."""
        G, K = config.num_kv_heads, config.head_dim
        return {'key': (2 * G, K // 2), 'value': (G, K)}

    def describe(self, config: CommonConfig) -> str:
        """Returns the heads in words."""
        return 'differential attention with ' + BaseAttention.describe(self, config)

    def score_heads(self, config: CommonConfig) -> int:
        """Returns the number of query heads of both maps."""
        return 2 * config.num_heads

    def flops(self, config: CommonConfig, span: int) -> float:
        """Returns the FLOPs of two score maps and of their two weighted sums of values."""
        return 6.0 * config.num_heads * config.head_dim * span


class DifferentialAttention(Tapped):
    """`(softmax(Q1 K1) - lambda softmax(Q2 K2)) V`, normalized per head.

    Ye et al. 2024, https://arxiv.org/abs/2410.05258. Each of the `H` heads has values of width
    `K`, and two queries and two keys of width `K / 2`. lambda is learned, and starts at a value
    that grows with the index of the layer.
    """

    config: CommonConfig
    kernel: AttentionKernel
    window: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, '... D'],
        context: AttentionContext,
        cache: LayerCache | None = None,
        dropout_key: Key[Array, ''] | None = None,
    ) -> tuple[Float[Array, '... D'], LayerCache | None]:
        """Returns `[..., D] -> [..., D]` and the layer's cache with this call's keys and values."""
        c = self.config
        (B, L), H, G, K = context.positions_BL.shape, c.num_heads, c.num_kv_heads, c.head_dim
        R = H // G

        def project(name: str, heads: int, axis: str) -> jax.Array:
            axes = ('embed', axis, 'head_dim')
            return Linear(c, (c.d_model,), (heads, K), axes, name=name)(x)

        # Heads of the two maps alternate within a group: [G, 2, R] queries, [G, 2] keys.
        q_BLGR2K = project('query', H, 'heads').reshape(B, L, G, R, 2, K // 2)
        q_BLHK = q_BLGR2K.swapaxes(3, 4).reshape(B, L, 2 * H, K // 2)
        k_BSGK = project('key', G, 'kv_heads').reshape(B, L, 2 * G, K // 2)
        v_BSGV = project('value', G, 'kv_heads').reshape(B, L, G, K)
        q_BLHK = self.tap('projected_query', q_BLHK, 'BLHK')
        k_BSGK = self.tap('projected_key', k_BSGK, 'BSGK')
        position = POSITIONS[c.position]
        if position.rotate is not None:
            q_BLHK = position.rotate(c, q_BLHK, context.positions_BL)
            k_BSGK = position.rotate(c, k_BSGK, context.positions_BL)
        if cache is not None:
            cache = cache.write(context.mask.first_query_slot_B, key=k_BSGK, value=v_BSGV)
            k_BSGK, v_BSGV = cache.read('key'), cache.read('value')
        scores = score_options(c, context, window=self.window, dropout_key=dropout_key)
        if scores.slopes_H is not None:
            slopes_G2R = jnp.tile(scores.slopes_H.reshape(G, 1, R), (1, 2, 1))
            scores = scores.replace(slopes_H=slopes_G2R.reshape(-1))
        out_BLHV = run_attention(self, self.kernel, q_BLHK, k_BSGK, v_BSGV.repeat(2, 2), scores)
        first, second = jnp.moveaxis(out_BLHV.reshape(B, L, G, 2, R, K), 3, 0)
        start = 0.8 - 0.6 * jnp.exp(-0.3 * jnp.asarray(context.layer, jnp.float32))
        out = first - (self._learned() + start).astype(x.dtype) * second
        out, _ = RMSNorm(c, axis='head_dim', name='head_norm')(out)
        out = out * (1 - start).astype(x.dtype)
        out = self.tap('heads', out.reshape(B, L, H, K), 'BLHK')
        axes = ('heads', 'head_dim', 'embed')
        output = Linear(c, (H, K), (c.d_model,), axes, residual=True, name='output')
        return output(out.reshape(*x.shape[:-1], H * K)), cache

    def _learned(self) -> Float[Array, '']:
        """Returns the learned part of lambda, which all heads of the layer share."""
        width, dtype = self.config.head_dim // 2, jnp.dtype(self.config.precision.params)
        init = declare(0.1, ('head_dim',), role=Role.VECTOR)
        q1, k1, q2, k2 = (
            self.param(f'lambda_{name}', init, (width,), dtype).astype(jnp.float32)
            for name in ('query_1', 'key_1', 'query_2', 'key_2')
        )
        return jnp.exp(q1 @ k1) - jnp.exp(q2 @ k2)
