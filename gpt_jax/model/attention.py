"""Causal self-attention: from activations to queries, keys and values, and back."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from gpt_jax.kernels.attention import find_kernel
from gpt_jax.kernels.dropout import dropout
from gpt_jax.kernels.scores import AttentionMask, ScoreOptions, hide_masked, soften
from gpt_jax.model.cache import LayerCache
from gpt_jax.model.config import AttentionKernel, AttentionKind, ModelConfig
from gpt_jax.model.linear import Linear
from gpt_jax.model.norm import RMSNorm
from gpt_jax.model.position import POSITIONS


@flax.struct.dataclass
class AttentionContext:
    """The positions and the mask that all layers share in one call of the model."""

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
        """Returns `[..., D] -> [..., D]` and the layer's cache with this call's keys and values."""
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
        options = ScoreOptions(
            mask=context.mask,
            window=self.window,
            soft_cap=c.attention_soft_cap,
            slopes_H=None if position.slopes is None else position.slopes(c),
            dropout_rate=c.dropouts.attention,
            dropout_key=dropout_key,
        )
        L, S = q_BLHK.shape[1], k_BSGK.shape[1]
        kernel = find_kernel(self.kernel, options, queries=L, keys=S) or attend
        out_BLHK = kernel(q_BLHK, k_BSGK, v_BSGK, options)
        axes = ('heads', 'head_dim', 'embed')
        inputs = (c.num_heads, c.head_dim)
        output = Linear(c, inputs, (c.d_model,), axes, residual=True, name='output')
        return output(out_BLHK.reshape(*x.shape[:-1], -1)), cache

    def _heads(self, x, context, name: str, count: int, axis: str) -> jax.Array:
        """Projects `x` to `[B, L, count, K]`."""
        c = self.config
        axes = ('embed', axis, 'head_dim')
        bias = c.use_bias or c.qkv_bias
        project = Linear(c, (c.d_model,), (count, c.head_dim), axes, use_bias=bias, name=name)
        return project(x).reshape(*context.positions_BL.shape, count, c.head_dim)


def attend(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGK: Float[Array, 'B S G K'],
    options: ScoreOptions,
) -> Float[Array, 'B L H K']:
    """Computes softmax attention of `H` query heads over `G` key/value heads.

    Products run in the input's dtype and accumulate in float32, as does the softmax. The score
    matrix `[B, H, L, S]` is materialised; `gpt_jax.kernels` has faster versions.
    """
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
    scores_BGRLS = jnp.einsum(
        'BLGRK,BSGK->BGRLS', q_BLGRK, k_BSGK, preferred_element_type=jnp.float32
    )
    scores_BGRLS = soften(scores_BGRLS * K**-0.5, options.soft_cap)
    scores_BGRLS = hide_masked(
        scores_BGRLS, mask=options.mask, window=options.window, slopes_H=options.slopes_H
    )
    weights_BGRLS = jax.nn.softmax(scores_BGRLS, axis=-1).astype(v_BSGK.dtype)
    weights_BGRLS = dropout(weights_BGRLS, options.dropout_rate, options.dropout_key)
    out_BLGRK = jnp.einsum('BGRLS,BSGK->BLGRK', weights_BGRLS, v_BSGK)
    return checkpoint_name(out_BLGRK.reshape(B, L, H, K), 'attention')


ATTENTIONS = {AttentionKind.GROUPED_QUERY: GroupedQueryAttention}
