"""Causal attention over scores: the plain version, and the call of the chosen kernel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from gpt_jax.kernels.attention import find_kernel
from gpt_jax.kernels.dropout import dropout
from gpt_jax.kernels.scores import ScoreOptions, hide_masked, soften
from gpt_jax.model.attention.base import AttentionContext
from gpt_jax.model.options import AttentionKernel, CommonConfig
from gpt_jax.model.parametrization import score_multiplier
from gpt_jax.model.position import POSITIONS
from gpt_jax.model.remat import ATTENTION
from gpt_jax.model.taps import Tapped


def attend(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGV: Float[Array, 'B S G V'],
    options: ScoreOptions,
    *,
    tap: Callable[[str, jax.Array, str], jax.Array] = lambda name, x, dims: x,
) -> Float[Array, 'B L H V']:
    """Computes softmax attention of `H` query heads over `G` key/value heads.

    Products run in the input's dtype and accumulate in float32, as does the softmax. The score
    matrix `[B, H, L, S]` is materialised; `gpt_jax.kernels` has faster versions. `tap` is that of
    the module (`gpt_jax.model.taps`).
    """
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    R, S = H // G, k_BSGK.shape[1]
    # Products over [B, G, rows, columns], as the cache is laid out: XLA copies nothing.
    q_BGQK = q_BLHK.reshape(B, L, G, R, K).transpose(0, 2, 3, 1, 4).reshape(B, G, R * L, K)
    k_BGSK, v_BGSV = k_BSGK.swapaxes(1, 2), v_BSGV.swapaxes(1, 2)
    scores_BGQS = jnp.einsum('BGQK,BGSK->BGQS', q_BGQK, k_BGSK, preferred_element_type=jnp.float32)
    scores_BGRLS = scores_BGQS.reshape(B, G, R, L, S)
    scores_BGRLS = soften(scores_BGRLS * K**-0.5, options.soft_cap)
    scores_BGRLS = hide_masked(
        scores_BGRLS, mask=options.mask, window=options.window, slopes_H=options.slopes_H
    )
    scores_BGRLS = tap('scores', scores_BGRLS, 'BGRLS')
    weights_BGRLS = jax.nn.softmax(scores_BGRLS, axis=-1).astype(v_BSGV.dtype)
    weights_BGRLS = tap('weights', weights_BGRLS, 'BGRLS')
    weights_BGRLS = dropout(weights_BGRLS, options.dropout_rate, options.dropout_key)
    weights_BGQS = weights_BGRLS.reshape(B, G, R * L, S)
    out_BGQV = jnp.einsum('BGQS,BGSV->BGQV', weights_BGQS, v_BGSV)
    out_BLGRV = out_BGQV.reshape(B, G, R, L, -1).transpose(0, 3, 1, 2, 4)
    return checkpoint_name(out_BLGRV.reshape(B, L, H, -1), ATTENTION)


def score_options(
    config: CommonConfig,
    context: AttentionContext,
    *,
    window: int,
    dropout_key: Key[Array, ''] | None,
) -> ScoreOptions:
    """Returns the options of a layer's scores: mask, window, soft cap, slopes and dropout."""
    slopes = POSITIONS[config.position].slopes
    return ScoreOptions(
        mask=context.mask,
        window=window,
        soft_cap=config.attention_soft_cap,
        slopes_H=None if slopes is None else slopes(config),
        dropout_rate=config.dropouts.attention,
        dropout_key=dropout_key,
    )


def run_attention(
    module: Tapped,
    kernel: AttentionKernel,
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGV: Float[Array, 'B S G V'],
    options: ScoreOptions,
) -> Float[Array, 'B L H V']:
    """Computes `attend` with the given kernel if it supports this call.

    Queries, keys and values are points of the module, and without a kernel scores and weights.
    Kernels need keys and values of equal width, so the narrower of the two is padded with zeros.
    """
    if (multiplier := score_multiplier(module.config)) != 1:
        q_BLHK = q_BLHK * jnp.asarray(multiplier, q_BLHK.dtype)
    q_BLHK = module.tap('query', q_BLHK, 'BLHK')
    k_BSGK = module.tap('key', k_BSGK, 'BSGK')
    v_BSGV = module.tap('value', v_BSGV, 'BSGK')
    L, S, K, V = q_BLHK.shape[1], k_BSGK.shape[1], k_BSGK.shape[3], v_BSGV.shape[3]
    run = find_kernel(kernel, options, queries=L, keys=S)
    if run is None:
        return attend(q_BLHK, k_BSGK, v_BSGV, options, tap=module.tap)
    if K < V:  # scores are divided by the root of the width
        q_BLHK = q_BLHK * (V / K) ** 0.5
    q_BLHK, k_BSGK, v_BSGV = (_widen(x, max(K, V)) for x in (q_BLHK, k_BSGK, v_BSGV))
    return run(q_BLHK, k_BSGK, v_BSGV, options)[..., :V]


def _widen(x: Float[Array, '... K'], width: int) -> jax.Array:
    missing = width - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
