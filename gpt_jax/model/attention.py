"""Causal self-attention: from activations to queries, keys and values, and back."""

import functools

import flax.struct
import jax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from gpt_jax.model.attention_mask import AttentionMask
from gpt_jax.model.attention_ops import ATTENTION_KERNELS
from gpt_jax.model.cache import LayerCache
from gpt_jax.model.config import AttentionKernel, AttentionKind, ModelConfig
from gpt_jax.model.linear import Linear
from gpt_jax.model.norm import RMSNorm
from gpt_jax.model.position import POSITIONS


@flax.struct.dataclass
class AttentionContext:
    """What every layer's attention shares in one call of the model."""

    positions_BL: Int[Array, 'B L']
    mask: AttentionMask


class GroupedQueryAttention(nn.Module):
    """`H` query heads over `G` key/value heads: MHA (G = H), GQA, MQA (G = 1).

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245. `window` limits how far back a query sees (0: no limit).
    """

    config: ModelConfig
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
        """`[..., D] -> [..., D]`, and the layer's cache with this call's keys and values."""
        c = self.config
        heads = functools.partial(self._heads, x, context)
        q_BLHK = heads('query', c.num_heads, 'heads')
        k_BSGK = heads('key', c.num_kv_heads, 'kv_heads')
        v_BSGK = heads('value', c.num_kv_heads, 'kv_heads')
        if c.qk_norm:  # Henry et al. 2020, https://arxiv.org/abs/2010.04245
            q_BLHK, _ = RMSNorm(c, axis='head_dim', name='query_norm')(q_BLHK)
            k_BSGK, _ = RMSNorm(c, axis='head_dim', name='key_norm')(k_BSGK)
        position = POSITIONS[c.position]
        if position.rotate is not None:
            q_BLHK = position.rotate(c, q_BLHK, context.positions_BL)
            k_BSGK = position.rotate(c, k_BSGK, context.positions_BL)
        if cache is not None:
            cache = cache.write(k_BSGK, v_BSGK, context.mask.first_query_slot)
            k_BSGK, v_BSGK = cache.key_BSGK, cache.value_BSGK
        out_BLHK = ATTENTION_KERNELS[self.kernel].attend(
            q_BLHK,
            k_BSGK,
            v_BSGK,
            mask=context.mask,
            window=self.window,
            soft_cap=c.attention_soft_cap,
            slopes_H=None if position.slopes is None else position.slopes(c),
            dropout_rate=c.attention_dropout,
            dropout_key=dropout_key,
        )
        axes = ('heads', 'head_dim', 'embed')
        inputs = (c.num_heads, c.head_dim)
        output = Linear(c, inputs, (c.d_model,), axes, residual=True, name='output')
        return output(out_BLHK.reshape(*x.shape[:-1], -1)), cache

    def _heads(self, x, context, name: str, count: int, axis: str) -> jax.Array:
        """A projection of `x` to `[B, L, count, K]`."""
        c = self.config
        axes = ('embed', axis, 'head_dim')
        bias = c.use_bias or c.qkv_bias
        project = Linear(c, (c.d_model,), (count, c.head_dim), axes, use_bias=bias, name=name)
        return project(x).reshape(*context.positions_BL.shape, count, c.head_dim)


ATTENTIONS = {AttentionKind.GROUPED_QUERY: GroupedQueryAttention}
