"""Speculative decoding without a second model: drafts are looked up in the text itself.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding) in the
scheme of Leviathan et al. 2022, https://arxiv.org/abs/2211.17192: one pass of the model over the
drafts gives the distributions after each of them. A draft is accepted when it is the very token
that the row's own randomness draws there. For a proposal without randomness that is rejection
sampling: token d is accepted with probability p(d), and what replaces it follows p without d. So
the text is the one that decoding token by token writes, greedy or sampled, however good the
drafts are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

MATCH = 3  # longest run of tokens that is looked for


def propose(
    text_BS: Int[Array, 'B S'],
    length: Int[Array, ''],
    first_slot_B: Int[Array, 'B'],
    *,
    count: int,
) -> Int[Array, 'B count']:
    """Guesses of the next tokens: what followed the text's last tokens when they came before.

    A row's text stands in slots `first_slot_B[b]` … `length - 1`. Of the earlier places where its
    last token stands, the one counts before which most of the MATCH last tokens stand too, and the
    latest of several; a text that ends there goes on from there again.
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
    """The tokens with nothing but `eot_id` after a row's end, and which rows ended by each."""
    ends_BC = (tokens_BC == eot_id) | ended_B[:, None]
    ended_BC = jax.lax.cummax(ends_BC.astype(jnp.int32), axis=1).astype(bool)
    return jnp.where(ended_BC, eot_id, tokens_BC), ended_BC


def count_accepted(
    drafts_BC: Int[Array, 'B C'], drawn_BC: Int[Array, 'B C'], ended_BC: Bool[Array, 'B C']
) -> Int[Array, '']:
    """How many drafts all rows accept: rows of a batch advance together.

    `ended_BC[b, i]`: row b had ended before draft i, and takes anything. Once all rows have
    ended nothing more is accepted.
    """
    agrees_C = ((drafts_BC == drawn_BC) | ended_BC).all(0) & ~ended_BC.all(0)
    return jnp.cumprod(agrees_C.astype(jnp.int32)).sum()
