"""Latent attention: keys and values of all heads are computed from one small vector per token."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from gpt_jax.config_tree import count, finite, whole
from gpt_jax.errors import UserError
from gpt_jax.kernels.scores import ScoreOptions
from gpt_jax.model.attention.attend import run_attention, score_options
from gpt_jax.model.attention.base import AttentionContext, BaseAttention
from gpt_jax.model.attention.layer_cache import LayerCache
from gpt_jax.model.linear import Linear
from gpt_jax.model.norm import RMSNorm
from gpt_jax.model.options import AttentionKernel, CommonConfig, Kernels
from gpt_jax.model.position import POSITIONS, rotated_width, yarn_growth
from gpt_jax.model.taps import Tapped


@dataclasses.dataclass(slots=True, kw_only=True)
class Latent(BaseAttention):
    """Keys and values from one latent vector per token, which is all that the cache holds.

    A head has `head_dim` query and key dimensions of its own, and `rope_dim` more whose key all
    heads share. RoPE rotates only the latter. Other positions leave them as they are.
    """

    kv_rank: int = count(512)  # width of the latent vector of keys and values
    q_rank: int = whole(0)  # width of a latent vector of queries; 0: queries come from the input
    rope_dim: int = whole(64)  # width of the part of a head that RoPE rotates
    value_dim: int = whole(0)  # width of the values of a head; 0: head_dim
    bias: bool = False  # biases to latents and of the output even without use_bias
    yarn_mscale: float = finite(0.0)  # m: YaRN's scores grow by (1 + 0.1 m ln(rope.scaling))²

    def make(self, config: CommonConfig, *, kernels: Kernels, window: int, name: str) -> nn.Module:
        """Returns the module."""
        return LatentAttention(config, self, kernels.attention, window, name=name)

    def finalize(self, config: CommonConfig) -> None:
        """Checks the heads and the rotated width. Raises UserError if they cannot work."""
        if config.num_kv_heads != config.num_heads:
            raise UserError(
                f'config.model.num_kv_heads={config.num_kv_heads} must be 0 or '
                f'config.model.num_heads={config.num_heads} for config.model.attention=latent, '
                'whose cache has no key/value heads; leave it out'
            )
        if self.yarn_mscale and not config.rope.yarn:
            raise UserError(
                f'config.model.attention.yarn_mscale={self.yarn_mscale} needs '
                f'config.model.rope.yarn=True; set it or leave yarn_mscale out'
            )
        rotates = POSITIONS[config.position].rotate is not None
        rotated = rotated_width(config, self.rope_dim) if self.rope_dim else 0
        if rotates and (rotated == 0 or rotated % 2):
            raise UserError(
                f'config.model.attention.rope_dim={self.rope_dim} must be even and at least 2 for '
                f'config.model.position={config.position}; change one of them'
            )

    def cache_shapes(self, config: CommonConfig) -> dict[str, tuple[int, int]]:
        """Returns the shape of the normalized latent, followed by the shared key after rotation.

        One array holds both, so the absorbed form reads it as keys and as values without a copy.
        """
        return {'latent': (1, self.kv_rank + self.rope_dim)}

    def describe(self, config: CommonConfig) -> str:
        """Returns the widths of the parts of a head, and the ranks."""
        rotated = POSITIONS[config.position].rotate is not None
        text = f'latent attention with {config.num_heads} heads of {config.head_dim}'
        if self.rope_dim:
            text += f' + {self.rope_dim} {"rotated" if rotated else "shared"}'
        if self.value_dim:
            text += f', values of {self.value_dim}'
        text += f', kv_rank {self.kv_rank}'
        return text + (f', q_rank {self.q_rank}' if self.q_rank else '')

    def score_width(self, config: CommonConfig) -> int:
        """Returns the larger of the widths of keys and values, to which the other is padded."""
        return max(config.head_dim + self.rope_dim, self.value_width(config))

    def flops(self, config: CommonConfig, span: int) -> float:
        """Returns the FLOPs of the scores and of the weighted sum of values."""
        width = config.head_dim + self.rope_dim + self.value_width(config)
        return 2.0 * config.num_heads * width * span

    def value_width(self, config: CommonConfig) -> int:
        """Returns the width of the values of a head."""
        return self.value_dim or config.head_dim

    def score_scale(self, config: CommonConfig) -> float:
        """Returns the factor of the scores that YaRN's longer context asks for."""
        return (1 + self.yarn_mscale * yarn_growth(config.rope)) ** 2

    def absorbs(self, config: CommonConfig, *, queries: int, keys: int) -> bool:
        """Returns whether the absorbed form needs fewer FLOPs over a cache.

        A layer of DeepSeek-V2-Lite's size (16 heads, float32, 2 CPU cores), absorbed and not: 368
        and 137 ms for 512 tokens and 512 slots, 303 and 216 ms for 512 and 1024, 33 and 99 ms for 8
        and 1024, 13 and 107 ms for 1 and 1024.

        Args:
          config: the model's.
          queries: tokens of the call.
          keys: slots of the cache.
        """
        heads = config.head_dim + self.value_width(config)
        absorbed = queries * (self.kv_rank * heads + 2 * keys * (self.kv_rank + self.rope_dim))
        return absorbed <= keys * (self.kv_rank * heads + queries * (heads + self.rope_dim))


class LatentAttention(Tapped):
    """Multi-head latent attention (MLA) of DeepSeek-V2, https://arxiv.org/abs/2405.04434.

    Every token has a latent vector `c` of width R. Head h has keys `[W_h c; r]` and values `U_h c`,
    where all heads share `r`, of width P. As in DeepSeek-V2, only the projections to latents and
    the output have biases.

    Two forms give the same result. One computes the keys and values of all heads. The absorbed form
    uses `q (W_h c) = (q W_h) c`: queries are mapped to the latent space, all heads attend to the
    vectors `[c; r]` as to one key/value head, and `U_h` is applied to the weighted sum. Decoding
    uses the absorbed form, so it never holds the keys and values of the cache per head.
    """

    config: CommonConfig
    options: Latent
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
        """Returns `[..., D] -> [..., D]` and the layer's cache with this call's latents."""
        c, options = self.config, self.options
        (B, L), H, K = context.positions_BL.shape, c.num_heads, c.head_dim
        R, P, V = options.kv_rank, options.rope_dim, options.value_width(c)
        position = POSITIONS[c.position]

        q_BLHX = self._queries(x).reshape(B, L, H, K + P)
        if (scale := options.score_scale(c)) != 1:
            q_BLHX *= scale
        q_BLHX = self.tap('projected_query', q_BLHX, 'BLHK')
        q_BLHK, q_BLHP = jnp.split(q_BLHX, [K], -1)
        down = self._linear((c.d_model,), (R + P,), ('embed', 'head_dim'), name='kv_down')
        c_BS1R, r_BS1P = jnp.split(down(x).reshape(B, L, 1, R + P), [R], -1)
        c_BS1R, _ = RMSNorm(c, axis='head_dim', name='kv_norm')(c_BS1R)
        r_BS1P = self.tap('projected_key', r_BS1P, 'BSGK')  # shared by all heads
        if position.rotate is not None:
            q_BLHP = position.rotate(c, q_BLHP, context.positions_BL)
            r_BS1P = position.rotate(c, r_BS1P, context.positions_BL)
        latent_BS1X = jnp.concatenate([c_BS1R, r_BS1P], -1)
        rows = x.shape[:-1]  # leading dimensions of the latents in the up-projection
        if cache is not None:
            cache = cache.write(context.mask.first_query_slot_B, latent=latent_BS1X)
            latent_BS1X = cache.read('latent')
            rows = (B, latent_BS1X.shape[1])
        scores = score_options(c, context, window=self.window, dropout_key=dropout_key)
        axes = ('latent', 'heads', 'head_dim')
        up = Linear(c, (R,), (H, K + V), axes, use_bias=False, name='kv_up')
        if cache is not None and options.absorbs(c, queries=L, keys=rows[1]):
            out_BLHV = self._absorbed(q_BLHK, q_BLHP, latent_BS1X, up, scores)
        else:
            kv = up(latent_BS1X[..., :R].reshape(*rows, R)).reshape(B, -1, H, K + V)
            k_BSHK, v_BSHV = jnp.split(kv, [K], -1)
            shared = jnp.broadcast_to(latent_BS1X[..., R:], (*k_BSHK.shape[:-1], P))
            k_BSHX = jnp.concatenate([k_BSHK, shared], -1)
            q_BLHX = jnp.concatenate([q_BLHK, q_BLHP], -1)
            out_BLHV = run_attention(self, self.kernel, q_BLHX, k_BSHX, v_BSHV, scores)
        out_BLHV = self.tap('heads', out_BLHV, 'BLHK')
        axes = ('heads', 'head_dim', 'embed')
        output = self._linear((H, V), (c.d_model,), axes, residual=True, name='output')
        return output(out_BLHV.reshape(*x.shape[:-1], H * V)), cache

    def _queries(self, x: Float[Array, '... D']) -> Float[Array, '... X']:
        """Projects `x` to the queries of all heads, directly or by a latent vector."""
        c, rank = self.config, self.options.q_rank
        outputs = (c.num_heads, c.head_dim + self.options.rope_dim)
        axes = ('heads', 'head_dim')
        if not rank:
            inputs = (c.d_model,)
            return Linear(c, inputs, outputs, ('embed', *axes), use_bias=False, name='query')(x)
        x = self._linear((c.d_model,), (rank,), ('embed', 'head_dim'), name='query_down')(x)
        x, _ = RMSNorm(c, axis='head_dim', name='query_norm')(x)
        return Linear(c, (rank,), outputs, ('latent', *axes), use_bias=False, name='query_up')(x)

    @property
    def _linear(self) -> Callable[..., Linear]:
        """The maker of the projections that may have a bias."""
        bias = self.config.use_bias or self.options.bias
        return functools.partial(Linear, self.config, use_bias=bias)

    def _absorbed(
        self,
        q_BLHK: Float[Array, 'B L H K'],
        q_BLHP: Float[Array, 'B L H P'],
        latent_BS1X: Float[Array, 'B S 1 X'],
        up: Linear,
        scores: ScoreOptions,
    ) -> Float[Array, 'B L H V']:
        """Computes attention in the latent space, where all heads share the latents."""
        K, P, R = q_BLHK.shape[-1], q_BLHP.shape[-1], self.options.kv_rank
        key_up_RHK, value_up_RHV = jnp.split(up.kernel.astype(q_BLHK.dtype), [K], -1)
        q_BLHR = jnp.einsum(
            'BLHK,RHK->BLHR', q_BLHK, key_up_RHK, preferred_element_type=jnp.float32
        )
        q_BLHX = jnp.concatenate([q_BLHR, q_BLHP.astype(jnp.float32)], -1)
        # Attention divides by the root of the width R + P; the scores' scale is that of K + P.
        q_BLHX = (q_BLHX * ((R + P) / (K + P)) ** 0.5).astype(q_BLHK.dtype)
        # The latents also serve as values: dropping the last P columns is cheaper than a copy.
        out_BLHX = run_attention(self, self.kernel, q_BLHX, latent_BS1X, latent_BS1X, scores)
        return jnp.einsum('BLHR,RHV->BLHV', out_BLHX[..., :R], value_up_RHV)
