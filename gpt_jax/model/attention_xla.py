"""The reference score kernel: scaled dot-product attention in plain XLA operations."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from gpt_jax.model.attention_mask import AttentionMask
from gpt_jax.model.linear import dropout

MASKED = -1e30  # a score that softmax turns into an exact 0


def attend_xla(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGK: Float[Array, 'B S G K'],
    *,
    mask: AttentionMask,
    window: int = 0,
    soft_cap: float = 0.0,
    slopes_H: Float[Array, 'H'] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ''] | None = None,
) -> Float[Array, 'B L H K']:
    """Softmax attention of `H` query heads over `G` key/value heads; it can express everything.

    Products run in the input's dtype and accumulate in float32, as does the softmax. The score
    matrix `[B, H, L, S]` is materialised.
    """
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
    scores_BGRLS = jnp.einsum(
        'BLGRK,BSGK->BGRLS', q_BLGRK, k_BSGK, preferred_element_type=jnp.float32
    )
    scores_BGRLS *= K**-0.5
    if soft_cap:
        scores_BGRLS = soft_cap * jnp.tanh(scores_BGRLS / soft_cap)
    scores_BGRLS = hide_masked(scores_BGRLS, mask=mask, window=window, slopes_H=slopes_H)
    weights_BGRLS = jax.nn.softmax(scores_BGRLS, axis=-1).astype(v_BSGK.dtype)
    weights_BGRLS = dropout(weights_BGRLS, dropout_rate, dropout_key)
    out_BLGRK = jnp.einsum('BGRLS,BSGK->BLGRK', weights_BGRLS, v_BSGK)
    return checkpoint_name(out_BLGRK.reshape(B, L, H, K), 'attention')


def hide_masked(
    scores_BGRLS: Float[Array, 'B G R L S'],
    *,
    mask: AttentionMask,
    window: int,
    slopes_H: Float[Array, 'H'] | None,
) -> Float[Array, 'B G R L S']:
    """Scores less the penalty of distance, if there is one, and `MASKED` where it says so."""
    _, G, R, L, S = scores_BGRLS.shape
    if slopes_H is not None:
        distance_LS = mask.first_query_slot + jnp.arange(L)[:, None] - jnp.arange(S)[None, :]
        penalty_GRLS = slopes_H.reshape(G, R, 1, 1) * distance_LS[None, None]
        scores_BGRLS -= penalty_GRLS[None]
    visible = mask.visible(length=L, keys=S, window=window)
    return jnp.where(visible[:, None, None], scores_BGRLS, MASKED)
