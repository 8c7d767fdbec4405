"""The programs of decoding, and the state that goes from one to the next.

Each is compiled per shape and `DecodeSettings`, and shared by all decoders of a config.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt

from gpt_jax.inference.sampling import SamplingRule, SeenTokens, sample
from gpt_jax.inference.speculative import count_accepted, find_ends, propose
from gpt_jax.model.cache import KVCache, make_cache
from gpt_jax.model.config import Kernels, ModelConfig
from gpt_jax.model.gpt import GPT


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """The static settings that programs are compiled for, besides shapes."""

    model: ModelConfig
    kernels: Kernels
    vocab_size: int  # ids >= vocab_size are never drawn
    eot_id: int


@flax.struct.dataclass
class TokenScores:
    """Log-probabilities by the model itself: before bias, penalties, temperature and filters.

    A slot's are those of its token, given all tokens before it.
    """

    token_BS: Float[Array, 'B S']  # of the token in the slot
    best_BSK: Float[Array, 'B S K']  # of the likeliest, descending
    best_ids_BSK: Int[Array, 'B S K']

    def put(
        self,
        logits_BCV: Float[Array, 'B C V'],
        tokens_BC: Int[Array, 'B C'],
        row_B1: Int[Array, 'B 1'],
        slot_BC: Int[Array, 'B C'],
        *,
        ranks: bool,
    ) -> 'TokenScores':
        """Returns the scores with those of new tokens, whose logits these are.

        Slots beyond the last are left out. Without `ranks` the likeliest tokens are not kept.
        """
        logprobs_BCV = jax.nn.log_softmax(logits_BCV.astype(jnp.float32), axis=-1)
        token_BC = jnp.take_along_axis(logprobs_BCV, tokens_BC[..., None], axis=-1)[..., 0]
        at = row_B1, slot_BC
        scores = self.replace(token_BS=self.token_BS.at[at].set(token_BC, mode='drop'))
        if not ranks:
            return scores
        best_BCK, ids_BCK = jax.lax.top_k(logprobs_BCV, self.best_BSK.shape[-1])
        return scores.replace(
            best_BSK=self.best_BSK.at[at].set(best_BCK, mode='drop'),
            best_ids_BSK=self.best_ids_BSK.at[at].set(ids_BCK, mode='drop'),
        )


@flax.struct.dataclass
class DecodeState:
    """The state of the decoding loop between two passes."""

    cache: KVCache
    text_BS: Int[Array, 'B S']  # the token in each slot of the cache
    logits_BV: Float[Array, 'B V']  # of the next token
    seen: SeenTokens | None  # None without a penalty
    drawn_B: Int[Array, 'B']  # tokens drawn so far; also the counter of the random keys
    ended_B: Bool[Array, 'B']  # rows that drew the end-of-text token
    passes_B: Int[Array, 'B']  # of the model while the row went on, after the prompt
    scores: TokenScores | None = None  # None: not kept


def _whole(x: jax.Array) -> jax.Array:
    """Replicates an array on every device."""
    return nn.with_logical_constraint(x, (None,) * x.ndim)


def row_key_data(seed: int, rows_B: np.ndarray) -> np.ndarray:
    """Returns the data of one random key per row, which depends on the seed and its number only."""
    return np.asarray(_row_key_data(np.uint32(seed), rows_B.astype(np.int32)))


@jax.jit
def _row_key_data(seed: UInt[Array, ''], rows_B: Int[Array, 'B']) -> UInt[Array, 'B X']:
    fold = functools.partial(jax.random.fold_in, jax.random.key(seed))
    return jax.random.key_data(jax.vmap(fold)(rows_B))


@functools.partial(jax.jit, static_argnames=('slots', 'penalises', 'settings'))
def prefill(
    params: Any,
    tokens_BL: Int[Array, 'B L'],
    length_B: Int[Array, 'B'],
    ended_B: Bool[Array, 'B'],
    *,
    slots: int,
    penalises: bool,
    settings: DecodeSettings,
) -> DecodeState:
    """Returns the state after the prompts: of row b the first `length_B[b]` tokens."""
    B, L = tokens_BL.shape
    model = GPT(settings.model, kernels=settings.kernels)
    cache = make_cache(settings.model, rows=B, slots=slots)
    hidden_BLD, cache = model.apply({'params': params}, tokens_BL, cache=cache, method='hidden')
    last_BD = _at(hidden_BLD, length_B - 1)
    logits_BV = model.apply({'params': params}, last_BD, method='logits')
    seen = None
    if penalises:
        real_BL = jnp.arange(L)[None] < length_B[:, None]
        prompt_BV = jnp.zeros(logits_BV.shape, bool)
        prompt_BV = prompt_BV.at[jnp.arange(B)[:, None], tokens_BL].max(real_BL)
        seen = SeenTokens(prompt_BV, jnp.zeros(logits_BV.shape, jnp.int32))
    return DecodeState(
        cache=cache.replace(length_B=length_B),
        text_BS=jnp.pad(tokens_BL, ((0, 0), (0, slots - L))),
        logits_BV=_whole(logits_BV),
        seen=seen,
        drawn_B=jnp.zeros(B, jnp.int32),
        ended_B=ended_B,
        passes_B=jnp.zeros(B, jnp.int32),
    )


def _at(x_BLX: Float[Array, 'B L X'], index_B: Int[Array, 'B']) -> Float[Array, 'B X']:
    """Returns one entry of each row."""
    return jnp.take_along_axis(x_BLX, index_B[:, None, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames=('rows', 'slots', 'best', 'settings'))
def empty_rows(*, rows: int, slots: int, best: int, settings: DecodeSettings) -> DecodeState:
    """Returns the state of rows without text, which draw nothing until `extend_row`.

    Scores are kept, with those of the `best` likeliest tokens of each slot.
    """
    V = settings.model.vocab_size
    return DecodeState(
        cache=make_cache(settings.model, rows=rows, slots=slots),
        text_BS=jnp.zeros((rows, slots), jnp.int32),
        logits_BV=jnp.zeros((rows, V)),
        seen=SeenTokens(jnp.zeros((rows, V), bool), jnp.zeros((rows, V), jnp.int32)),
        drawn_B=jnp.zeros(rows, jnp.int32),
        ended_B=jnp.zeros(rows, bool),
        passes_B=jnp.zeros(rows, jnp.int32),
        scores=TokenScores(
            jnp.zeros((rows, slots)),
            jnp.zeros((rows, slots, best)),
            jnp.zeros((rows, slots, best), jnp.int32),
        ),
    )


@functools.partial(jax.jit, static_argnames=('scores', 'settings'), donate_argnames='state')
def extend_row(
    params: Any,
    state: DecodeState,
    tokens_L: Int[Array, 'L'],
    row: Int[Array, ''],
    start: Int[Array, ''],
    count: Int[Array, ''],
    outgrew: Bool[Array, ''],
    *,
    scores: bool,
    settings: DecodeSettings,
) -> tuple[DecodeState, Float[Array, 'D']]:
    """Puts the first `count` tokens into a row from slot `start` on; what was there is dropped.

    The count of drawn tokens begins at 0 and the seen tokens are those of the row, unless the text
    goes on after it `outgrew` the context. All of `tokens_L` must fit into the slots. With
    `scores` the tokens' scores are kept, but for the first of a text; the logits of the row must
    be those after slot `start - 1`.

    Also returns the sum of the last hidden states of the tokens.
    """
    model = GPT(settings.model, kernels=settings.kernels)
    own = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=row, slice_size=1)
    cache = KVCache(jax.tree.map(own, state.cache.layers), start[None])
    hidden_1LD, cache = model.apply(
        {'params': params}, tokens_L[None], cache=cache, method='hidden'
    )
    if scores:
        logits_1LV = model.apply({'params': params}, hidden_1LD, method='logits')
        logits_1V = _at(logits_1LV, count[None] - 1)
        before_11V = own(state.logits_BV)[:, None]
        logits_1LV = jnp.concatenate([before_11V, _whole(logits_1LV)[:, :-1]], axis=1)
        V = logits_1LV.shape[-1]
        logits_1LV = jnp.where(jnp.arange(V) < settings.vocab_size, logits_1LV, -jnp.inf)
        slots_1L = start + jnp.arange(len(tokens_L))[None]
        kept = state.scores.put(logits_1LV, tokens_L[None], row[None, None], slots_1L, ranks=True)
        state = state.replace(scores=kept)
    else:
        last_1D = _at(hidden_1LD, count[None] - 1)
        logits_1V = model.apply({'params': params}, last_1D, method='logits')

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=0)

    layers = jax.tree.map(put, state.cache.layers, cache.layers)
    length = start + count
    text_BS = jax.lax.dynamic_update_slice(state.text_BS, tokens_L[None], (row, start))
    real_1S = jnp.arange(text_BS.shape[1])[None] < length
    prompt_1V = (own(state.seen.prompt_BV) & outgrew).at[0, own(text_BS)].max(real_1S)
    seen = SeenTokens(
        put(state.seen.prompt_BV, prompt_1V),
        put(state.seen.drawn_BV, own(state.seen.drawn_BV) * outgrew),
    )
    is_real_L1 = jnp.arange(len(tokens_L))[:, None] < count
    pooled_D = jnp.where(is_real_L1, hidden_1LD[0].astype(jnp.float32), 0).sum(0)
    state = state.replace(
        cache=KVCache(layers, state.cache.length_B.at[row].set(length)),
        text_BS=text_BS,
        logits_BV=put(state.logits_BV, _whole(logits_1V)),
        seen=seen,
        drawn_B=state.drawn_B.at[row].mul(outgrew),
        ended_B=state.ended_B.at[row].set(False),
        passes_B=state.passes_B.at[row].mul(outgrew),
    )
    return state, _whole(pooled_D)


@functools.partial(jax.jit, static_argnames='slots')
def resize(state: DecodeState, *, slots: int) -> DecodeState:
    """Returns the state with a cache of `slots` slots; longer rows lose their last tokens."""

    def fit(x_BS: jax.Array) -> jax.Array:
        more = max(0, slots - x_BS.shape[1])
        return jnp.pad(x_BS[:, :slots], [(0, 0), (0, more)] + [(0, 0)] * (x_BS.ndim - 2))

    return state.replace(
        cache=state.cache.resize(slots),
        text_BS=fit(state.text_BS),
        scores=jax.tree.map(fit, state.scores),
    )


@functools.partial(
    jax.jit, static_argnames=('drafts', 'ranks', 'settings'), donate_argnames='state'
)
def draw_tokens(
    params: Any,
    state: DecodeState,
    key_data_BX: UInt[Array, 'B X'],
    rule: SamplingRule,
    limit_B: Int[Array, 'B'],
    *,
    drafts: int,
    ranks: bool,
    settings: DecodeSettings,
) -> DecodeState:
    """Draws tokens into the next slots of `text_BS` until each row has `limit_B`, or has ended.

    Each pass of the model takes the next drawn token and `drafts` guesses of the tokens after it.
    Correct guesses are accepted. Rows that are done do not change. Where the state has scores,
    those of the tokens are kept, with `ranks` also those of the likeliest ones.
    """
    model = GPT(settings.model, kernels=settings.kernels)
    B, V = state.logits_BV.shape
    S = state.text_BS.shape[1]
    drawable_1V = jnp.arange(V)[None] < settings.vocab_size
    keys_B = jax.random.wrap_key_data(key_data_BX)

    def draw(state: DecodeState, logits_BCV: jax.Array, seen: SeenTokens | None, first: int):
        """Draws tokens `[B, C]`; their random keys are numbered from `state.drawn_B + first`."""
        C = logits_BCV.shape[1]
        numbers_BC = state.drawn_B[:, None] + first + jnp.arange(C)[None]
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
        tokens = sample(
            jnp.where(drawable_1V, logits_BCV.reshape(B * C, V), -jnp.inf),
            jax.tree.map(lambda x_BCV: x_BCV.reshape(B * C, V), seen),
            fold(keys_B, numbers_BC).reshape(B * C),
            jax.tree.map(lambda x_B: jnp.repeat(x_B, C, axis=0), rule),
        )
        return tokens.reshape(B, C)

    def active(state: DecodeState) -> jax.Array:
        return (state.drawn_B < limit_B) & ~state.ended_B

    def advance(state: DecodeState) -> DecodeState:
        active_B = active(state)
        row_B1, length_B1 = jnp.arange(B)[:, None], state.cache.length_B[:, None]
        seen_B1V = jax.tree.map(lambda x_BV: x_BV[:, None], state.seen)
        tokens_BC = draw(state, state.logits_BV[:, None], seen_B1V, 0)
        scores = state.scores
        if scores is not None:
            logits_BV = jnp.where(drawable_1V, state.logits_BV, -jnp.inf)
            slot_B1 = jnp.where(active_B[:, None], length_B1, S)  # none for rows that are done
            scores = scores.put(logits_BV[:, None], tokens_BC, row_B1, slot_B1, ranks=ranks)
        text_BS = state.text_BS.at[row_B1, length_B1].set(tokens_BC, mode='drop')
        if drafts:
            guesses_BC = propose(text_BS, state.cache.length_B + 1, count=drafts)
            slots_BC = length_B1 + 1 + jnp.arange(drafts)[None]
            text_BS = text_BS.at[row_B1, slots_BC].set(guesses_BC, mode='drop')
            tokens_BC = jnp.concatenate([tokens_BC, guesses_BC], axis=1)
        ended_BC = find_ends(tokens_BC, eot_id=settings.eot_id)
        seen_BCV = None
        if state.seen is not None:
            new_BCV = jnp.cumsum(jax.nn.one_hot(tokens_BC, V, dtype=jnp.int32), axis=1)
            drawn_BCV = state.seen.drawn_BV[:, None] + new_BCV
            prompt_BCV = jnp.broadcast_to(state.seen.prompt_BV[:, None], drawn_BCV.shape)
            seen_BCV = SeenTokens(prompt_BCV, drawn_BCV)
        logits_BCV, cache = model.apply({'params': params}, tokens_BC, cache=state.cache)
        logits_BCV = _whole(logits_BCV)
        accepted_B = jnp.zeros(B, jnp.int32)
        if drafts:
            seen = jax.tree.map(lambda x_BCV: x_BCV[:, :-1], seen_BCV)
            drawn_BC = draw(state, logits_BCV[:, :-1], seen, 1)
            accepted_B = count_accepted(tokens_BC[:, 1:], drawn_BC, ended_BC[:, :-1])
            accepted_B = jnp.clip(accepted_B, 0, limit_B - state.drawn_B - 1)
            if scores is not None:
                is_new_BC = active_B[:, None] & (jnp.arange(drafts)[None] < accepted_B[:, None])
                scores = scores.put(
                    jnp.where(drawable_1V, logits_BCV[:, :-1], -jnp.inf),
                    tokens_BC[:, 1:],
                    row_B1,
                    jnp.where(is_new_BC, slots_BC, S),
                    ranks=ranks,
                )
        new_B = jnp.where(active_B, 1 + accepted_B, 0)

        def last(x_BCV: jax.Array, old_BV: jax.Array) -> jax.Array:
            return jnp.where(active_B[:, None], _at(x_BCV, accepted_B), old_BV)

        ended_B1 = last(ended_BC[:, :, None], state.ended_B[:, None])
        return DecodeState(
            cache=cache.replace(length_B=state.cache.length_B + new_B),
            text_BS=text_BS,
            logits_BV=last(logits_BCV, state.logits_BV),
            seen=jax.tree.map(last, seen_BCV, state.seen),
            drawn_B=state.drawn_B + new_B,
            ended_B=ended_B1[:, 0],
            passes_B=state.passes_B + active_B,
            scores=scores,
        )

    state = jax.lax.while_loop(lambda state: active(state).any(), advance, state)
    return state.replace(
        text_BS=_whole(state.text_BS),
        drawn_B=_whole(state.drawn_B),
        ended_B=_whole(state.ended_B),
        passes_B=_whole(state.passes_B),
    )
