"""Generation of token ids: the whole loop runs on the device.

Few programs are compiled, and all decoders of one config share them. Batches are padded to a power
of two, prompts to one of a few lengths. The cache starts small and doubles when it is full, so
attention reads a cache about as long as the text.

Sharded weights stay sharded: all processes of the mesh generate together, and each holds the whole
text. With replicated weights, each process generates on one of its own devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key

from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.sampling import SamplingRule, make_rule, sample
from gpt_jax.inference.speculative import count_accepted, find_ends, propose
from gpt_jax.kernels.experts import choose_expert_kernel
from gpt_jax.model.cache import KVCache, make_cache
from gpt_jax.model.config import DType, ExpertKernel, Kernels, MatmulPrecision, ModelConfig
from gpt_jax.model.gpt import GPT
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.parallel.rules import decoding_rules, on_mesh

LEAST_PROMPT = 32  # smallest length that prompts are padded to
LEAST_CAPACITY = 128  # smallest number of cache slots
# XLA's matrix-vector path on GPUs is slower than a product with eight rows.
LEAST_ROWS = {'gpu': 8}
# XLA on CPUs multiplies few bfloat16 rows at a twentieth of the memory bandwidth.
COMPUTE_DTYPES = {'cpu': DType.FLOAT32}
MATRICES = ('kernel', 'table')  # parameters used only in products, in the compute dtype


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeStatistics:
    """Statistics of one generation."""

    drawn: int  # tokens of all rows
    passes: int  # of the model over a row, after the prompt; of all rows
    draft_tokens: int  # guessed per pass

    @property
    def acceptance(self) -> float:
        """The fraction of guessed tokens that were accepted; 0 without guesses."""
        return (self.drawn - self.passes) / max(1, self.passes * self.draft_tokens)

    def __str__(self) -> str:
        return (
            f'{self.drawn} tokens in {self.passes} passes: '
            f'{self.drawn / max(1, self.passes):.2f} a pass, '
            f'{self.acceptance:.0%} of the drafts accepted'
        )


class Decoder:
    """A model that is ready to generate: layers unrolled, weights in the compute dtype.

    Attributes:
      params: the weights in the layout that the programs read.
      statistics: of the latest call of `generate`, updated after each piece.
    """

    def __init__(self, config: ModelConfig, params: Any, *, vocab_size: int, eot_id: int):
        """Takes parameters in the stored layout; ids >= `vocab_size` are never drawn.

        With weights sharded over processes, this and `generate` are collective.
        """
        backend = jax.default_backend()
        self.config = config
        dtype = COMPUTE_DTYPES.get(backend, config.precision.compute)
        # The default products: rounding the weights again for each token costs more than it saves.
        precision = dataclasses.replace(
            config.precision, compute=dtype, matmul=MatmulPrecision.DEFAULT
        )
        model = dataclasses.replace(config, precision=precision)
        experts = choose_expert_kernel(config.execution.expert_kernel, backend=backend)
        self._settings = DecodeSettings(
            model=model,
            kernels=Kernels(experts=ExpertKernel(experts)),
            vocab_size=vocab_size,
            eot_id=eot_id,
        )
        self._least_rows = LEAST_ROWS.get(backend, 1)
        self._mesh = _mesh_of(params)
        if self._mesh is None:
            params = jax.tree.map(_own_copy, params)
        self.params = self._call(_prepare, params, config=model)
        self.statistics = DecodeStatistics(drawn=0, passes=0, draft_tokens=0)

    @property
    def executed_config(self) -> ModelConfig:
        """The config with the dtype of this backend, which the weights and the cache have."""
        return self._settings.model

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SampleConfig, *, chunk: int = 0
    ) -> Iterator[list[list[int]]]:
        """Yields new ids of each row until `max_new_tokens`, or until every row has ended.

        A row ends with the end-of-text token. When a text exceeds the context length, generation
        continues from its last `max_seq_len // 2` tokens. `chunk` is the largest number of ids per
        row (0: as many as the device can draw without the host) and does not change the ids.

        Raises:
            UserError: a prompt is longer than the context, or empty.
        """
        context = self.config.max_seq_len
        for prompt in prompts:
            if not 1 <= len(prompt) <= context:
                raise UserError(
                    f'the prompt has {len(prompt)} tokens, the context holds 1 to {context} '
                    f'(config.model.max_seq_len); shorten it'
                )
        B, drafts = len(prompts), sampling.draft_tokens
        rows = [list(prompt) for prompt in prompts]
        padded = max(self._least_rows, _next_power(B))
        rule = make_rule([sampling] * padded, vocab_size=self._settings.vocab_size)
        key_data = row_key_data(sampling.seed, np.arange(padded))
        visible = np.ones(padded, int)  # tokens of each row that the model sees
        visible[:B] = [len(row) for row in rows]
        ended, drawn = np.arange(padded) >= B, np.zeros(padded, int)
        state, limit = None, 0  # limit: tokens drawn by each row that has not ended
        while limit < sampling.max_new_tokens and not ended.all():
            full = visible > context
            visible[full] = max(1, context // 2)
            filled = int(visible[~ended].max())
            needed = filled + 1 + drafts
            slots = _rung(needed, least=LEAST_CAPACITY, most=context + 1 + drafts)
            if state is None or (full & ~ended).any():
                state = self._start(rows, visible, rule, state, slots=slots)
            elif slots > state.text_BS.shape[1]:
                state = self._call(_grow, state, slots=slots)
            room = min(context + 1, state.text_BS.shape[1] - drafts) - filled
            remaining = sampling.max_new_tokens - limit
            limit += min(chunk or remaining, remaining, room)
            state = self._call(
                _decode,
                self.params,
                state,
                key_data,
                rule,
                np.full(padded, limit, np.int32),
                drafts=drafts,
                settings=self._settings,
            )
            before = drawn
            drawn, passes, ended, text_BS = jax.device_get(
                (state.drawn_B, state.passes_B, state.ended_B, state.text_BS)
            )
            seen, visible = visible, visible + drawn - before
            tokens = [text_BS[b, seen[b] : visible[b]].tolist() for b in range(B)]
            for row, new in zip(rows, tokens, strict=True):
                row.extend(new)
            self.statistics = DecodeStatistics(
                drawn=int(drawn.sum()), passes=int(passes.sum()), draft_tokens=drafts
            )
            yield tokens

    def _start(
        self,
        rows: list[list[int]],
        visible: np.ndarray,
        rule: SamplingRule,
        state: DecodeState | None,
        *,
        slots: int,
    ) -> DecodeState:
        """Fills a new cache with the last `visible[b]` tokens of each row.

        Rows are padded on the right to one of a few lengths; no text sees that padding. Rows beyond
        `rows` are padding of the batch.
        """
        width = _rung(int(visible.max()), least=LEAST_PROMPT, most=self.config.max_seq_len)
        tokens = np.zeros((len(visible), width), np.int32)
        for row, length, target in zip(rows, visible, tokens, strict=False):
            target[:length] = row[len(row) - length :]
        fresh = self._call(
            _prefill,
            self.params,
            tokens,
            visible.astype(np.int32),
            np.arange(len(visible)) >= len(rows),
            slots=slots,
            penalises=rule.penalises,
            settings=self._settings,
        )
        if state is None:
            return fresh
        return fresh.replace(
            seen_BV=state.seen_BV | fresh.seen_BV if rule.penalises else None,
            drawn_B=state.drawn_B,
            ended_B=state.ended_B,
            passes_B=state.passes_B,
        )

    def _call(self, program: Callable, *args: Any, **options: Any) -> Any:
        """Runs a program on the mesh of the weights, if they are sharded."""
        if self._mesh is None:
            return program(*args, **options)
        with on_mesh(self._mesh, decoding_rules(self._mesh, width=self.config.d_model)):
            return program(*args, **options)


def _mesh_of(params: Any) -> Mesh | None:
    """Returns the mesh that any parameter is sharded over, or None if all are replicated."""
    shardings = [x.sharding for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
    meshes = [
        sharding.mesh
        for sharding in shardings
        if isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated
    ]
    return meshes[0] if meshes else None


def _own_copy(leaf: Any) -> Any:
    """Returns one local device's copy of a replicated array; other leaves as they are."""
    return leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf


def _whole(x: jax.Array) -> jax.Array:
    """Replicates an array on every device."""
    return nn.with_logical_constraint(x, (None,) * x.ndim)


@functools.partial(jax.jit, static_argnames='config')
def _prepare(params: Any, *, config: ModelConfig) -> Any:
    """Converts stored parameters for decoding: layers unrolled, matrices in the compute dtype."""

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        return (
            leaf.astype(jnp.dtype(config.precision.compute)) if path[-1].key in MATRICES else leaf
        )

    executed = to_executed(params, config, scan=False)
    return jax.tree_util.tree_map_with_path(cast, executed)


def row_key_data(seed: int, rows_B: np.ndarray) -> np.ndarray:
    """Returns the data of one random key per row, which depends on the seed and its number only."""
    return np.asarray(_row_key_data(jax.random.key(seed), rows_B.astype(np.int32)))


@jax.jit
def _row_key_data(key: Key[Array, ''], rows_B: Int[Array, 'B']) -> Int[Array, 'B X']:
    return jax.random.key_data(jax.vmap(functools.partial(jax.random.fold_in, key))(rows_B))


@functools.partial(jax.jit, static_argnames=('slots', 'penalises', 'settings'))
def _prefill(
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


@functools.partial(jax.jit, static_argnames='slots')
def _grow(state: DecodeState, *, slots: int) -> DecodeState:
    """Returns the state with its cache enlarged to `slots` slots."""
    padding = slots - state.text_BS.shape[1]
    return state.replace(
        cache=state.cache.grow(slots), text_BS=jnp.pad(state.text_BS, ((0, 0), (0, padding)))
    )


@functools.partial(jax.jit, static_argnames=('drafts', 'settings'), donate_argnames='state')
def _decode(
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
    Correct guesses are accepted. A row that is done stays as it is.
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
        )

    state = jax.lax.while_loop(lambda state: active(state).any(), advance, state)
    return state.replace(
        text_BS=_whole(state.text_BS),
        drawn_B=_whole(state.drawn_B),
        ended_B=_whole(state.ended_B),
        passes_B=_whole(state.passes_B),
    )


def _next_power(count: int) -> int:
    """Returns the smallest power of two >= `count`."""
    return 1 << max(0, count - 1).bit_length()


def _rung(length: int, *, least: int, most: int) -> int:
    """Returns the smallest power of two >= `length`, clipped to [`least`, `most`]."""
    return min(max(least, _next_power(length)), most)
