"""Grouped-query attention: several query heads share the keys and values of one head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from gpt_jax.config_tree import finite
from gpt_jax.errors import UserError
from gpt_jax.model.attention.attend import run_attention, score_options
from gpt_jax.model.attention.base import AttentionContext, BaseAttention
from gpt_jax.model.attention.layer_cache import LayerCache
from gpt_jax.model.linear import Linear
from gpt_jax.model.norm import RMSNorm
from gpt_jax.model.options import AttentionKernel, CommonConfig, Kernels, QKNorm
from gpt_jax.model.parametrization import score_multiplier
from gpt_jax.model.position import POSITIONS, rotated_width
from gpt_jax.model.taps import Tapped


@dataclasses.dataclass(slots=True, kw_only=True)
class GroupedQuery(BaseAttention):
    """Query heads over fewer key/value heads: MHA, GQA and MQA."""

    qk_norm: QKNorm = QKNorm.NONE  # RMSNorm of queries and keys, per head or over all heads
    qkv_bias: bool = False  # biases of query, key and value even without use_bias (Qwen2)
    output_bias: bool = False  # bias of the output projection even without use_bias
    query_pre_attn_scalar: float = finite(0.0)  # scores are divided by its root; 0: head_dim
    inverse_layer_scale: bool = False  # scores are divided by the number of the layer, from 1

    def __post_init__(self) -> None:
        """Converts the boolean that `qk_norm` used to be."""
        object.__setattr__(self, 'qk_norm', QKNorm(self.qk_norm))

    def make(self, config: CommonConfig, *, kernels: Kernels, window: int, name: str) -> nn.Module:
        """Returns the module."""
        return GroupedQueryAttention(config, self, kernels.attention, window, name=name)

    def finalize(self, config: CommonConfig) -> None:
        """Checks the width of heads. Raises UserError if RoPE cannot rotate its pairs."""
        self.qk_norm = QKNorm(self.qk_norm)  # a config file may have assigned a boolean
        if self.query_pre_attn_scalar and score_multiplier(config) != 1:
            raise UserError(
                'config.model.attention.query_pre_attn_scalar fixes the scale of scores, which '
                'config.model.parametrization=mup derives from head_dim; set it to 0'
            )
        rotated, fraction = rotated_width(config), config.rope.fraction
        if POSITIONS[config.position].rotate is not None and (rotated % 2 or not rotated):
            part = f' times config.model.rope.fraction={fraction}' if fraction != 1 else ''
            raise UserError(
                f'config.model.head_dim={config.head_dim}{part} must be even for '
                f'config.model.position={config.position}'
            )

    def cache_shapes(self, config: CommonConfig) -> dict[str, tuple[int, int]]:
        """Returns the shapes of the keys and the values."""
        shape = (config.num_kv_heads, config.head_dim)
        return {'key': shape, 'value': shape}

    def flops(self, config: CommonConfig, span: int) -> float:
        """Returns the FLOPs of the scores and of the weighted sum of values."""
        return 4.0 * config.num_heads * config.head_dim * span


class GroupedQueryAttention(Tapped):
    """`H` query heads over `G` key/value heads: MHA (G = H), GQA, MQA (G = 1).

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245. `window` limits how far back a query sees (0: no limit).
    """

    config: CommonConfig
    options: GroupedQuery
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
        heads = functools.partial(self._heads, x, context)
        q_BLHK = heads('query', c.num_heads, 'heads')
        k_BSGK = heads('key', c.num_kv_heads, 'kv_heads')
        v_BSGK = heads('value', c.num_kv_heads, 'kv_heads')
        q_BLHK = self.tap('projected_query', q_BLHK, 'BLHK')
        k_BSGK = self.tap('projected_key', k_BSGK, 'BSGK')
        if self.options.qk_norm != QKNorm.NONE:
            q_BLHK = self._qk_norm('query_norm', q_BLHK)
            k_BSGK = self._qk_norm('key_norm', k_BSGK)
        position = POSITIONS[c.position]
        if position.rotate is not None:
            q_BLHK = position.rotate(c, q_BLHK, context.positions_BL)
            k_BSGK = position.rotate(c, k_BSGK, context.positions_BL)
        q_BLHK = self._scale(q_BLHK, context)
        if cache is not None:
            cache = cache.write(context.mask.first_query_slot_B, key=k_BSGK, value=v_BSGK)
            k_BSGK, v_BSGK = cache.read('key'), cache.read('value')
        scores = score_options(c, context, window=self.window, dropout_key=dropout_key)
        out_BLHK = run_attention(self, self.kernel, q_BLHK, k_BSGK, v_BSGK, scores)
        out_BLHK = self.tap('heads', out_BLHK, 'BLHK')
        axes = ('heads', 'head_dim', 'embed')
        inputs = (c.num_heads, c.head_dim)
        bias = c.use_bias or self.options.output_bias
        output = Linear(c, inputs, (c.d_model,), axes, use_bias=bias, residual=True, name='output')
        return output(out_BLHK.reshape(*x.shape[:-1], -1)), cache

    def _heads(self, x, context, name: str, count: int, axis: str) -> jax.Array:
        """Projects `x` to `[B, L, count, K]`."""
        c = self.config
        axes = ('embed', axis, 'head_dim')
        bias = c.use_bias or self.options.qkv_bias
        project = Linear(c, (c.d_model,), (count, c.head_dim), axes, use_bias=bias, name=name)
        return project(x).reshape(*context.positions_BL.shape, count, c.head_dim)

    def _qk_norm(self, name: str, x_BLHK: jax.Array) -> jax.Array:
        """Normalizes queries or keys; Henry et al. 2020, https://arxiv.org/abs/2010.04245."""
        norm = RMSNorm(self.config, axis='head_dim', name=name)
        if self.options.qk_norm == QKNorm.HEAD:
            return norm(x_BLHK)[0]
        return norm(x_BLHK.reshape(*x_BLHK.shape[:2], -1))[0].reshape(x_BLHK.shape)

    def _scale(self, q_BLHK: jax.Array, context: AttentionContext) -> jax.Array:
        """Scales the queries, as every kernel divides scores by the root of the head's width."""
        scalar = self.options.query_pre_attn_scalar
        if scalar and scalar != self.config.head_dim:
            q_BLHK *= (self.config.head_dim / scalar) ** 0.5
        if self.options.inverse_layer_scale:
            q_BLHK /= jnp.asarray(context.layer + 1, q_BLHK.dtype)
        return q_BLHK
