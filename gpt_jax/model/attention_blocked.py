"""The score kernel of CPUs: blocks of queries, each against the keys that one of them may see.

Of the score matrix of causal attention one half is masked, and without a fused kernel it costs as
much as the other. In four blocks three eighths of it are left out; a window leaves out more.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gpt_jax.model.attention_mask import AttentionMask
from gpt_jax.model.attention_xla import attend_part, attend_xla
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.linear import dropout

BLOCKS = 4  # more leave out little more, and are more to compile
LEAST_BLOCK = 64  # queries; smaller products are slow


def attend_blocked(
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
    """What `attend_xla` gives, dropout masks included, without most of what the mask hides.

    Sequences of less than two blocks, documents kept apart and queries of a cache go to it whole.
    """
    L, S = q_BLHK.shape[1], k_BSGK.shape[1]
    block = max(LEAST_BLOCK, -(-L // BLOCKS))
    other_mask = mask.segment_ids_BS is not None or mask.first_slot_B is not None
    if other_mask or L != S or 2 * block > L:
        return attend_xla(
            q_BLHK,
            k_BSGK,
            v_BSGK,
            mask=mask,
            window=window,
            soft_cap=soft_cap,
            slopes_H=slopes_H,
            dropout_rate=dropout_rate,
            dropout_key=dropout_key,
        )
    outs = []
    for start in range(0, L, block):
        stop = min(start + block, L)
        first_key = max(0, start + 1 - window) if window else 0
        drop = functools.partial(
            dropout,
            rate=dropout_rate,
            key=dropout_key,
            start=(0, 0, start, first_key),
            whole=(k_BSGK.shape[2], q_BLHK.shape[2] // k_BSGK.shape[2], L, S),
        )
        outs.append(
            attend_part(
                q_BLHK[:, start:stop],
                k_BSGK[:, first_key:stop],
                v_BSGK[:, first_key:stop],
                mask=AttentionMask(first_query_slot=start - first_key),
                window=window,
                soft_cap=soft_cap,
                slopes_H=slopes_H,
                drop=drop,
            )
        )
    return jnp.concatenate(outs, axis=1)


def blocked_obstacles(config: ModelConfig, *, backend: str, segments: bool) -> dict[str, bool]:
    """Why it would not be better than the reference, or could not be equal to it."""
    generator = jax.config.jax_default_prng_impl
    return {
        f'the backend is {backend}': backend != 'cpu',
        'documents are kept apart (config.data.segment_ids)': segments,
        f'parts of dropout masks need JAX_DEFAULT_PRNG_IMPL=threefry2x32, not {generator}': (
            config.attention_dropout > 0 and generator != 'threefry2x32'
        ),
    }
