"""Attention on CPUs: blocks of queries, each with the keys that any of them sees.

A causal mask hides half of the score matrix. Without a fused kernel that half costs as much as the
other. Four blocks skip three eighths of the matrix; a window skips more.

XLA's CPU products read the second matrix of `a @ b` by rows. So the gradients transpose only
queries, keys, values and their gradients, never scores. They also read each matrix of scores as few
times as possible (Dao et al. 2022, appendix B.4, https://arxiv.org/abs/2205.14135). This takes 0.7
to 0.9 of the time of autodiff.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gpt_jax.kernels.attention_config import AttentionConfig
from gpt_jax.kernels.dropout import dropout
from gpt_jax.kernels.matmul_cpu import stored
from gpt_jax.kernels.scores import AttentionMask, ScoreOptions, hide_masked, soften

BLOCKS = 4  # more blocks skip little more and take longer to compile
LEAST_BLOCK = 64  # queries; smaller products are slow


class _Kept(NamedTuple):
    """The residuals of a block of queries for its gradient; weights: `exponentials * inverse`."""

    capped_BGRLS: Float[Array, 'B G R L S'] | None  # scores; None without a soft cap
    exponentials_BGRLS: Float[Array, 'B G R L S']
    dropped_BGRLS: Float[Array, 'B G R L S']  # the same after dropout
    inverse_BGRL1: Float[Array, 'B G R L 1']  # of the sum of the exponentials
    out_BGRLK: Float[Array, 'B G R L K']


def attend_blocked(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGK: Float[Array, 'B S G K'],
    options: ScoreOptions,
) -> Float[Array, 'B L H K']:
    """Computes attention without most masked scores; dropout masks equal plain attention's.

    Raises:
        ValueError: there are segments or a cache; see `blocked_takes`.
    """
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    if not blocked_takes(options, queries=L, keys=k_BSGK.shape[1]):
        raise ValueError('blocked attention takes no segments and no cache')
    out_BGRLK = _attend(
        (options.window, options.soft_cap, options.dropout_rate),
        q_BLHK.reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4),
        k_BSGK.swapaxes(1, 2),
        v_BSGK.swapaxes(1, 2),
        options.slopes_H,
        options.dropout_key,
    )
    return checkpoint_name(out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, H, K), 'attention')


def blocked_takes(options: ScoreOptions, *, queries: int, keys: int) -> bool:
    """Returns whether the blocks support this call: no packed documents and no cache."""
    return options.is_causal_only and queries == keys


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, q_BGRLK, k_BGSK, v_BGSK, slopes_H, dropout_key):
    return _forward(static, q_BGRLK, k_BGSK, v_BGSK, slopes_H, dropout_key)[0]


def _forward(static, q_BGRLK, k_BGSK, v_BGSK, slopes_H, dropout_key):
    window, soft_cap, dropout_rate = static
    blocks = []
    k_BGKS = stored(k_BGSK.mT)
    for queries, keys in _blocks(k_BGSK.shape[2], window):
        scores_BGRLS = _multiply(q_BGRLK[:, :, :, queries], k_BGKS[..., keys])
        scores_BGRLS *= q_BGRLK.shape[-1] ** -0.5
        scores_BGRLS = soften(scores_BGRLS, soft_cap)
        capped_BGRLS = scores_BGRLS if soft_cap else None
        mask = AttentionMask(first_query_slot_B=jnp.array([queries.start - keys.start]))
        scores_BGRLS = hide_masked(scores_BGRLS, mask=mask, window=window, slopes_H=slopes_H)
        exponentials_BGRLS = jnp.exp(scores_BGRLS - scores_BGRLS.max(-1, keepdims=True))
        inverse_BGRL1 = 1 / exponentials_BGRLS.sum(-1, keepdims=True)
        dropped_BGRLS = dropout(
            exponentials_BGRLS,
            dropout_rate,
            dropout_key,
            start=(0, 0, queries.start, keys.start),
            whole=(*q_BGRLK.shape[1:4], k_BGSK.shape[2]),
        )
        out_BGRLK = _multiply(dropped_BGRLS.astype(v_BGSK.dtype), v_BGSK[:, :, keys])
        out_BGRLK *= inverse_BGRL1
        blocks.append(
            _Kept(capped_BGRLS, exponentials_BGRLS, dropped_BGRLS, inverse_BGRL1, out_BGRLK)
        )
    out_BGRLK = jnp.concatenate([kept.out_BGRLK for kept in blocks], axis=3)
    return out_BGRLK.astype(v_BGSK.dtype), (q_BGRLK, k_BGSK, v_BGSK, blocks)


def _backward(static, saved, dout_BGRLK):
    window, soft_cap, _ = static
    q_BGRLK, k_BGSK, v_BGSK, blocks = saved
    scale = q_BGRLK.shape[-1] ** -0.5
    dq = []
    v_BGKS = stored(v_BGSK.mT)
    dk_BGKS = jnp.zeros(k_BGSK.mT.shape, jnp.float32)
    dv_BGKS = jnp.zeros(v_BGSK.mT.shape, jnp.float32)
    for (queries, keys), kept in zip(_blocks(k_BGSK.shape[2], window), blocks, strict=True):
        block_q, block_dout = q_BGRLK[:, :, :, queries], dout_BGRLK[:, :, :, queries]
        dout_f32 = block_dout.astype(jnp.float32)
        # The gradient of the softmax's sum: equal for all keys of a query, dropout or not.
        shared_BGRL1 = (dout_f32 * kept.out_BGRLK).sum(-1, keepdims=True)
        dweights_BGRLS = _multiply(block_dout, v_BGKS[..., keys])
        dscores_BGRLS = (
            kept.dropped_BGRLS * dweights_BGRLS - kept.exponentials_BGRLS * shared_BGRL1
        ) * (kept.inverse_BGRL1 * scale)
        if soft_cap:
            dscores_BGRLS *= 1 - (kept.capped_BGRLS / soft_cap) ** 2
        dscores_BGRLS = dscores_BGRLS.astype(block_q.dtype)
        scaled_dout = (dout_f32 * kept.inverse_BGRL1).astype(block_dout.dtype)
        dq.append(_multiply(dscores_BGRLS, k_BGSK[:, :, keys]).astype(block_q.dtype))
        dk_BGKS = dk_BGKS.at[..., keys].add(_sum_queries(block_q, dscores_BGRLS))
        dv_BGKS = dv_BGKS.at[..., keys].add(
            _sum_queries(scaled_dout, kept.dropped_BGRLS.astype(block_dout.dtype))
        )
    dq_BGRLK = jnp.concatenate(dq, axis=3)
    return dq_BGRLK, dk_BGKS.mT.astype(k_BGSK.dtype), dv_BGKS.mT.astype(v_BGSK.dtype), None, None


_attend.defvjp(_forward, _backward)


def _blocks(length: int, window: int) -> list[tuple[slice, slice]]:
    """Returns blocks of queries, each with the keys that any of them sees."""
    size = max(LEAST_BLOCK, -(-length // BLOCKS))
    if 2 * size > length:
        size = length
    return [
        (
            slice(start, min(start + size, length)),
            slice(max(0, start + 1 - window) if window else 0, min(start + size, length)),
        )
        for start in range(0, length, size)
    ]


def _multiply(a_BGRLX: jax.Array, b_BGXY: jax.Array) -> Float[Array, 'B G R L Y']:
    """Computes the product for each row and group of heads, accumulated in float32."""
    B, G, R, L, X = a_BGRLX.shape
    product_BGNY = jax.lax.dot_general(
        a_BGRLX.reshape(B, G, R * L, X),
        b_BGXY,
        (((3,), (2,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
    )
    return product_BGNY.reshape(B, G, R, L, -1)


def _sum_queries(a_BGRLK: jax.Array, b_BGRLS: jax.Array) -> Float[Array, 'B G K S']:
    """Computes the product over all queries of a group of heads: a gradient per key."""
    B, G, R, L, K = a_BGRLK.shape
    a_BGKN = stored(a_BGRLK.reshape(B, G, R * L, K).mT)
    return _multiply(a_BGKN[:, :, None], b_BGRLS.reshape(B, G, R * L, -1))[:, :, 0]


def blocked_obstacles(config: AttentionConfig, *, backend: str, segments: bool) -> dict[str, bool]:
    """Returns the reasons not to use blocks (slower, or not equal), and whether each holds."""
    generator = jax.config.jax_default_prng_impl
    return {
        f'the backend is {backend}': backend != 'cpu',
        'documents are kept apart (config.data.segment_ids)': segments,
        f'parts of dropout masks need JAX_DEFAULT_PRNG_IMPL=threefry2x32, not {generator}': (
            config.dropouts.attention > 0 and generator != 'threefry2x32'
        ),
    }
