"""Speculative decoding without a second model: drafts are looked up in the text itself.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding) in the
scheme of Leviathan et al. 2022, https://arxiv.org/abs/2211.17192: one pass of the model over the
drafts gives the distribution after each draft. A draft is accepted if it equals the token that the
row's key draws at that position; rows accept drafts of their own. For a deterministic proposal this
is rejection sampling: token d is accepted with probability p(d), and its replacement is distributed
as p without d. So the text equals that of decoding token by token, greedy or sampled, whatever the
quality of the drafts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

MATCH = 3  # longest match that is looked for, in tokens


def propose(
    text_BS: Int[Array, 'B S'], length_B: Int[Array, 'B'], *, count: int
) -> Int[Array, 'B count']:
    """Guesses the next tokens: copies the tokens after an earlier occurrence of the last tokens.

    A row's text is in slots 0 … `length_B[b] - 1`. The occurrence is the earlier place that matches
    most of the last MATCH tokens; among equals, the latest. If fewer than `count` tokens follow it,
    they are repeated.
    """
    B, S = text_BS.shape
    last_B1 = length_B[:, None] - 1
    slot_1S = jnp.arange(S)[None]
    earlier_BS = slot_1S < last_B1
    agrees_BS, matched_BS = earlier_BS, jnp.zeros((B, S), jnp.int32)
    for back in range(MATCH):
        token_B1 = jnp.take_along_axis(text_BS, jnp.maximum(last_B1 - back, 0), axis=1)
        agrees_BS &= (jnp.roll(text_BS, back, axis=1) == token_B1) & (slot_1S >= back)
        matched_BS += agrees_BS
    place_B1 = jnp.argmax(matched_BS * S + slot_1S * earlier_BS, axis=1)[:, None]
    period_B1 = jnp.maximum(last_B1 - place_B1, 1)
    source_BC = place_B1 + 1 + jnp.arange(count)[None] % period_B1
    return jnp.take_along_axis(text_BS, jnp.minimum(source_BC, last_B1), axis=1)


def find_ends(tokens_BC: Int[Array, 'B C'], *, eot_id: int) -> Bool[Array, 'B C']:
    """Marks the end-of-text tokens and all tokens after them."""
    ends_BC = (tokens_BC == eot_id).astype(jnp.int32)
    return jax.lax.cummax(ends_BC, axis=1).astype(bool)


def count_accepted(
    drafts_BC: Int[Array, 'B C'], drawn_BC: Int[Array, 'B C'], ended_BC: Bool[Array, 'B C']
) -> Int[Array, 'B']:
    """Returns the number of drafts that each row accepts.

    `ended_BC[b, i]`: row b ended before draft i, so it accepts no draft from there on.
    """
    agrees_BC = (drafts_BC == drawn_BC) & ~ended_BC
    return jnp.cumprod(agrees_BC.astype(jnp.int32), axis=1).sum(1)
