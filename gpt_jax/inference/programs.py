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
from jaxtyping import Array, Bool, Float, Int, Key

from gpt_jax.inference.sampling import SamplingRule, sample
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
class DecodeState:
    """The state of the decoding loop between two passes."""

    cache: KVCache
    text_BS: Int[Array, 'B S']  # the token in each slot of the cache
    logits_BV: Float[Array, 'B V']  # of the next token
    seen_BV: Bool[Array, 'B V'] | None  # tokens of the row so far; None without a penalty
    drawn_B: Int[Array, 'B']  # tokens drawn so far; also the counter of the random keys
    ended_B: Bool[Array, 'B']  # rows that drew the end-of-text token
    passes_B: Int[Array, 'B']  # of the model while the row went on, after the prompt
    logprobs_BS: Float[Array, 'B S'] | None = None  # of drawn tokens; None: not kept


def _whole(x: jax.Array) -> jax.Array:
    """Replicates an array on every device."""
    return nn.with_logical_constraint(x, (None,) * x.ndim)


def row_key_data(seed: int, rows_B: np.ndarray) -> np.ndarray:
    """Returns the data of one random key per row, which depends on the seed and its number only."""
    return np.asarray(_row_key_data(jax.random.key(seed), rows_B.astype(np.int32)))


@jax.jit
def _row_key_data(key: Key[Array, ''], rows_B: Int[Array, 'B']) -> Int[Array, 'B X']:
    return jax.random.key_data(jax.vmap(functools.partial(jax.random.fold_in, key))(rows_B))


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
    seen_BV = None
    if penalises:
        real_BL = jnp.arange(L)[None] < length_B[:, None]
        seen_BV = jnp.zeros(logits_BV.shape, bool)
        seen_BV = seen_BV.at[jnp.arange(B)[:, None], tokens_BL].max(real_BL)
    return DecodeState(
        cache=cache.replace(length_B=length_B),
        text_BS=jnp.pad(tokens_BL, ((0, 0), (0, slots - L))),
        logits_BV=_whole(logits_BV),
        seen_BV=seen_BV,
        drawn_B=jnp.zeros(B, jnp.int32),
        ended_B=ended_B,
        passes_B=jnp.zeros(B, jnp.int32),
    )


def _at(x_BLX: Float[Array, 'B L X'], index_B: Int[Array, 'B']) -> Float[Array, 'B X']:
    """Returns one entry of each row."""
    return jnp.take_along_axis(x_BLX, index_B[:, None, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames=('rows', 'slots', 'logprobs', 'settings'))
def empty_rows(*, rows: int, slots: int, logprobs: bool, settings: DecodeSettings) -> DecodeState:
    """Returns the state of rows without text, which draw nothing until `extend_row`."""
    V = settings.model.vocab_size
    return DecodeState(
        cache=make_cache(settings.model, rows=rows, slots=slots),
        text_BS=jnp.zeros((rows, slots), jnp.int32),
        logits_BV=jnp.zeros((rows, V)),
        seen_BV=jnp.zeros((rows, V), bool),
        drawn_B=jnp.zeros(rows, jnp.int32),
        ended_B=jnp.zeros(rows, bool),
        passes_B=jnp.zeros(rows, jnp.int32),
        logprobs_BS=jnp.zeros((rows, slots)) if logprobs else None,
    )


@functools.partial(jax.jit, static_argnames='settings', donate_argnames='state')
def extend_row(
    params: Any,
    state: DecodeState,
    tokens_L: Int[Array, 'L'],
    row: Int[Array, ''],
    start: Int[Array, ''],
    count: Int[Array, ''],
    outgrew: Bool[Array, ''],
    *,
    settings: DecodeSettings,
) -> DecodeState:
    """Puts the first `count` tokens into a row from slot `start` on; what was there is dropped.

    The count of drawn tokens begins at 0 and the seen tokens are those of the row, unless the text
    goes on after it `outgrew` the context. All of `tokens_L` must fit into the slots.
    """
    model = GPT(settings.model, kernels=settings.kernels)
    own = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=row, slice_size=1)
    cache = KVCache(jax.tree.map(own, state.cache.layers), start[None])
    hidden_1LD, cache = model.apply(
        {'params': params}, tokens_L[None], cache=cache, method='hidden'
    )
    last_1D = _at(hidden_1LD, count[None] - 1)
    logits_1V = model.apply({'params': params}, last_1D, method='logits')

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=0)

    layers = jax.tree.map(put, state.cache.layers, cache.layers)
    length = start + count
    text_BS = jax.lax.dynamic_update_slice(state.text_BS, tokens_L[None], (row, start))
    seen_BV = state.seen_BV
    if seen_BV is not None:
        real_1S = jnp.arange(text_BS.shape[1])[None] < length
        seen_1V = (own(seen_BV) & outgrew).at[0, own(text_BS)].max(real_1S)
        seen_BV = put(seen_BV, seen_1V)
    return state.replace(
        cache=KVCache(layers, state.cache.length_B.at[row].set(length)),
        text_BS=text_BS,
        logits_BV=put(state.logits_BV, _whole(logits_1V)),
        seen_BV=seen_BV,
        drawn_B=state.drawn_B.at[row].mul(outgrew),
        ended_B=state.ended_B.at[row].set(False),
        passes_B=state.passes_B.at[row].mul(outgrew),
    )


@functools.partial(jax.jit, static_argnames='slots')
def resize(state: DecodeState, *, slots: int) -> DecodeState:
    """Returns the state with a cache of `slots` slots; longer rows lose their last tokens."""

    def fit(x_BS: jax.Array) -> jax.Array:
        return jnp.pad(x_BS[:, :slots], ((0, 0), (0, max(0, slots - x_BS.shape[1]))))

    return state.replace(
        cache=state.cache.resize(slots),
        text_BS=fit(state.text_BS),
        logprobs_BS=None if state.logprobs_BS is None else fit(state.logprobs_BS),
    )


@functools.partial(jax.jit, static_argnames=('drafts', 'settings'), donate_argnames='state')
def draw_tokens(
    params: Any,
    state: DecodeState,
    key_data_BX: Int[Array, 'B X'],
    rule: SamplingRule,
    limit_B: Int[Array, 'B'],
    *,
    drafts: int,
    settings: DecodeSettings,
) -> DecodeState:
    """Draws tokens into the next slots of `text_BS` until each row has `limit_B`, or has ended.

    Each pass of the model takes the next drawn token and `drafts` guesses of the tokens after it.
    Correct guesses are accepted. Rows that are done do not change. Log-probabilities are those of
    the model, before temperature and filters; they are not kept of accepted guesses.
    """
    model = GPT(settings.model, kernels=settings.kernels)
    B, V = state.logits_BV.shape
    drawable_1V = jnp.arange(V)[None] < settings.vocab_size
    keys_B = jax.random.wrap_key_data(key_data_BX)

    def draw(state: DecodeState, logits_BCV: jax.Array, seen_BCV: jax.Array | None, first: int):
        """Draws tokens `[B, C]`; their random keys are numbered from `state.drawn_B + first`."""
        C = logits_BCV.shape[1]
        numbers_BC = state.drawn_B[:, None] + first + jnp.arange(C)[None]
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
        tokens = sample(
            jnp.where(drawable_1V, logits_BCV.reshape(B * C, V), -jnp.inf),
            None if seen_BCV is None else seen_BCV.reshape(B * C, V),
            fold(keys_B, numbers_BC).reshape(B * C),
            jax.tree.map(lambda x_B: jnp.repeat(x_B, C), rule),
        )
        return tokens.reshape(B, C)

    def active(state: DecodeState) -> jax.Array:
        return (state.drawn_B < limit_B) & ~state.ended_B

    def advance(state: DecodeState) -> DecodeState:
        active_B, seen_BV = active(state), state.seen_BV
        row_B1, length_B1 = jnp.arange(B)[:, None], state.cache.length_B[:, None]
        seen_B1V = None if seen_BV is None else seen_BV[:, None]
        tokens_BC = draw(state, state.logits_BV[:, None], seen_B1V, 0)
        logprobs_BS = state.logprobs_BS
        if logprobs_BS is not None:
            logits_BV = jnp.where(drawable_1V, state.logits_BV, -jnp.inf)
            logprobs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
            drawn_B1 = jnp.take_along_axis(logprobs_BV, tokens_BC, axis=1)
            logprobs_BS = logprobs_BS.at[row_B1, length_B1].set(drawn_B1, mode='drop')
        text_BS = state.text_BS.at[row_B1, length_B1].set(tokens_BC, mode='drop')
        if drafts:
            guesses_BC = propose(text_BS, state.cache.length_B + 1, count=drafts)
            slots_BC = length_B1 + 1 + jnp.arange(drafts)[None]
            text_BS = text_BS.at[row_B1, slots_BC].set(guesses_BC, mode='drop')
            tokens_BC = jnp.concatenate([tokens_BC, guesses_BC], axis=1)
        ended_BC = find_ends(tokens_BC, eot_id=settings.eot_id)
        seen_BCV = None
        if seen_BV is not None:
            new_BCV = jax.nn.one_hot(tokens_BC, V, dtype=jnp.int32)
            seen_BCV = (jax.lax.cummax(new_BCV, axis=1) > 0) | seen_BV[:, None]
        logits_BCV, cache = model.apply({'params': params}, tokens_BC, cache=state.cache)
        logits_BCV = _whole(logits_BCV)
        accepted_B = jnp.zeros(B, jnp.int32)
        if drafts:
            seen = None if seen_BCV is None else seen_BCV[:, :-1]
            drawn_BC = draw(state, logits_BCV[:, :-1], seen, 1)
            accepted_B = count_accepted(tokens_BC[:, 1:], drawn_BC, ended_BC[:, :-1])
            accepted_B = jnp.clip(accepted_B, 0, limit_B - state.drawn_B - 1)
        new_B = jnp.where(active_B, 1 + accepted_B, 0)

        def last(x_BCV: jax.Array, old_BV: jax.Array) -> jax.Array:
            return jnp.where(active_B[:, None], _at(x_BCV, accepted_B), old_BV)

        ended_B1 = last(ended_BC[:, :, None], state.ended_B[:, None])
        return DecodeState(
            cache=cache.replace(length_B=state.cache.length_B + new_B),
            text_BS=text_BS,
            logits_BV=last(logits_BCV, state.logits_BV),
            seen_BV=None if seen_BCV is None else last(seen_BCV, seen_BV),
            drawn_B=state.drawn_B + new_B,
            ended_B=ended_B1[:, 0],
            passes_B=state.passes_B + active_B,
            logprobs_BS=logprobs_BS,
        )

    state = jax.lax.while_loop(lambda state: active(state).any(), advance, state)
    return state.replace(
        text_BS=_whole(state.text_BS),
        drawn_B=_whole(state.drawn_B),
        ended_B=_whole(state.ended_B),
        passes_B=_whole(state.passes_B),
    )
