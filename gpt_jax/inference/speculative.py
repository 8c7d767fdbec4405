"""Speculative decoding without a second model: drafts are looked up in the text itself.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding) in the
scheme of Leviathan et al. 2022, https://arxiv.org/abs/2211.17192: one pass of the model over the
drafts gives the distribution after each draft. A draft is accepted if it equals the token that the
row's key draws at that position. For a deterministic proposal this is rejection sampling: token d
is accepted with probability p(d), and its replacement is distributed as p without d. So the text
equals that of decoding token by token, greedy or sampled, whatever the quality of the drafts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

MATCH = 3  # longest match that is looked for, in tokens


def propose(
    text_BS: Int[Array, 'B S'],
    length: Int[Array, ''],
    first_slot_B: Int[Array, 'B'],
    *,
    count: int,
) -> Int[Array, 'B count']:
    """Guesses the next tokens: copies the tokens after an earlier occurrence of the last tokens.

    A row's text is in slots `first_slot_B[b]` … `length - 1`. The occurrence is the earlier place
    that matches most of the last MATCH tokens; among equals, the latest. If fewer than `count`
    tokens follow it, they are repeated.
    """
    B, S = text_BS.shape
    last = length - 1
    slot_1S = jnp.arange(S)[None]
    earlier_BS = (slot_1S < last) & (slot_1S >= first_slot_B[:, None])
    agrees_BS, matched_BS = earlier_BS, jnp.zeros((B, S), jnp.int32)
    for back in range(MATCH):
        token_B1 = jax.lax.dynamic_slice(text_BS, (0, jnp.maximum(last - back, 0)), (B, 1))
        inside_BS = slot_1S - back >= first_slot_B[:, None]
        agrees_BS &= (jnp.roll(text_BS, back, axis=1) == token_B1) & inside_BS
        matched_BS += agrees_BS
    place_B1 = jnp.argmax(matched_BS * S + slot_1S * earlier_BS, axis=1)[:, None]
    period_B1 = jnp.maximum(last - place_B1, 1)
    source_BC = place_B1 + 1 + jnp.arange(count)[None] % period_B1
    return jnp.take_along_axis(text_BS, jnp.minimum(source_BC, last), axis=1)


def end_drafts(
    tokens_BC: Int[Array, 'B C'], ended_B: Bool[Array, 'B'], *, eot_id: int
) -> tuple[Int[Array, 'B C'], Bool[Array, 'B C']]:
    """Replaces tokens after a row's end by `eot_id`; also marks where rows have ended."""
    ends_BC = (tokens_BC == eot_id) | ended_B[:, None]
    ended_BC = jax.lax.cummax(ends_BC.astype(jnp.int32), axis=1).astype(bool)
    return jnp.where(ended_BC, eot_id, tokens_BC), ended_BC


def count_accepted(
    drafts_BC: Int[Array, 'B C'], drawn_BC: Int[Array, 'B C'], ended_BC: Bool[Array, 'B C']
) -> Int[Array, '']:
    """Returns the number of drafts that all rows accept: rows of a batch advance together.

    `ended_BC[b, i]`: row b ended before draft i and accepts any token. Once all rows have ended,
    no draft is accepted.
    """
    agrees_C = ((drafts_BC == drawn_BC) | ended_BC).all(0) & ~ended_BC.all(0)
    return jnp.cumprod(agrees_C.astype(jnp.int32)).sum()
