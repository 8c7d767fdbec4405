"""Generation of token ids: prefill and decoding run on the device, a chunk of tokens a call."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.sampling import SamplingRule, make_rule, sample
from gpt_jax.model.cache import KVCache, make_cache
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import GPT
from gpt_jax.model.layout import to_executed

LENGTH_MULTIPLE = 32  # prompts are padded, and caches sized, to multiples: fewer programs
MATRICES = ('kernel', 'table')  # parameters that only ever enter products, in the compute dtype


@flax.struct.dataclass
class DecodeState:
    """What passes from one token to the next."""

    cache: KVCache
    logits_BV: Float[Array, 'B V']  # of the next token
    seen_BV: Bool[Array, 'B V']  # tokens of the row so far
    drawn: Int[Array, '']  # tokens drawn so far, which is the randomness' counter
    ended_B: Bool[Array, 'B']  # rows that drew the end-of-text token


class Decoder:
    """A model that is ready to generate: layers unrolled, weights in the compute dtype."""

    def __init__(self, config: ModelConfig, params: Any, *, vocab_size: int, eot_id: int):
        """Takes parameters in the stored layout; ids from `vocab_size` on are never drawn."""
        self.config = config
        self._vocab_size, self._eot_id = vocab_size, eot_id
        self._model = GPT(config)
        self._params = jax.jit(self._prepare)(params)
        self._prefill = jax.jit(self._prefill_rows, static_argnames='slots')
        self._decode = jax.jit(self._decode_chunk, static_argnames='chunk', donate_argnums=1)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SampleConfig
    ) -> Iterator[np.ndarray]:
        """Yields `[B, n]` new ids until `max_new_tokens`, or until every row ended.

        Rows that drew the end-of-text token go on repeating it. A text that outgrows the context
        goes on from the last half of it: before a chunk that would not fit, the row's tokens but
        the last `max_seq_len // 2` are forgotten.

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
        rule = make_rule(sampling, vocab_size=self._vocab_size)
        row_keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(sampling.seed)))
        keys_B = row_keys(jnp.arange(len(prompts)))
        chunk = max(1, min(sampling.chunk, context // 2))
        rows = [list(prompt) for prompt in prompts]
        lengths = np.array([len(row) for row in rows])
        state, remaining = None, sampling.max_new_tokens
        while remaining:
            count = min(chunk, remaining)
            outgrown = lengths + count > context
            if outgrown.any():
                lengths = np.where(outgrown, context // 2, lengths)
            if state is None or outgrown.any():
                state = self._restart(rows, lengths, remaining, state)
            state, tokens = self._decode(self._params, state, keys_B, rule, count, chunk=chunk)
            tokens = np.asarray(tokens)[:, :count]
            for row, new in zip(rows, tokens, strict=True):
                row.extend(new.tolist())
            lengths = lengths + count
            remaining -= count
            yield tokens
            if bool(state.ended_B.all()):
                return

    def _restart(
        self,
        rows: list[list[int]],
        lengths: np.ndarray,
        remaining: int,
        state: DecodeState | None,
    ) -> DecodeState:
        """Runs the last `lengths[b]` tokens of each row into a fresh cache."""
        longest = int(lengths.max())
        width = _round_up(longest)
        room = min(remaining, self.config.max_seq_len - longest)
        tokens = np.zeros((len(rows), width), np.int32)
        for row, length, target in zip(rows, lengths, tokens, strict=True):
            target[width - length :] = row[len(row) - length :]
        fresh = self._prefill(
            self._params,
            jnp.asarray(tokens),
            jnp.asarray(width - lengths, jnp.int32),
            slots=_round_up(width + room),
        )
        if state is None:
            return fresh
        return fresh.replace(
            seen_BV=state.seen_BV | fresh.seen_BV, drawn=state.drawn, ended_B=state.ended_B
        )

    def _prepare(self, params: Any) -> Any:
        """The parameters as decoding wants them."""
        dtype = jnp.dtype(self.config.compute_dtype)

        def cast(path: tuple, leaf: jax.Array) -> jax.Array:
            return leaf.astype(dtype) if path[-1].key in MATRICES else leaf

        executed = to_executed(params, period=self.config.num_layers)
        return jax.tree_util.tree_map_with_path(cast, executed)

    def _prefill_rows(
        self,
        params: Any,
        tokens_BL: Int[Array, 'B L'],
        first_slot_B: Int[Array, 'B'],
        *,
        slots: int,
    ) -> DecodeState:
        """The state after the prompts; `first_slot_B` is the padding on their left."""
        B, L = tokens_BL.shape
        cache = make_cache(self.config, first_slot_B=first_slot_B, slots=slots)
        hidden_BLD, cache = self._model.apply(
            {'params': params}, tokens_BL, cache=cache, method='hidden'
        )
        logits_BV = self._model.apply({'params': params}, hidden_BLD[:, -1], method='logits')
        real_BL = jnp.arange(L)[None, :] >= first_slot_B[:, None]
        seen_BV = jnp.zeros(logits_BV.shape, bool)
        seen_BV = seen_BV.at[jnp.arange(B)[:, None], tokens_BL].max(real_BL)
        return DecodeState(
            cache=cache,
            logits_BV=logits_BV,
            seen_BV=seen_BV,
            drawn=jnp.zeros((), jnp.int32),
            ended_B=jnp.zeros((B,), bool),
        )

    def _decode_chunk(
        self,
        params: Any,
        state: DecodeState,
        keys_B: Key[Array, 'B'],
        rule: SamplingRule,
        count: Int[Array, ''],
        *,
        chunk: int,
    ) -> tuple[DecodeState, Int[Array, 'B chunk']]:
        """Draws `count <= chunk` tokens a row; columns beyond are the end-of-text token."""
        B = keys_B.shape[0]
        drawable_1V = jnp.arange(state.logits_BV.shape[-1])[None, :] < self._vocab_size

        def more(carry: tuple[Any, DecodeState, jax.Array]) -> jax.Array:
            i, state, _ = carry
            return (i < count) & ~state.ended_B.all()

        def draw(carry: tuple[Any, DecodeState, jax.Array]) -> tuple[Any, DecodeState, jax.Array]:
            i, state, tokens_BC = carry
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, state.drawn)
            logits_BV = jnp.where(drawable_1V, state.logits_BV, -jnp.inf)
            token_B = sample(logits_BV, state.seen_BV, keys, rule)
            token_B = jnp.where(state.ended_B, self._eot_id, token_B)
            logits_BLV, cache = self._model.apply(
                {'params': params}, token_B[:, None], cache=state.cache
            )
            state = DecodeState(
                cache=cache,
                logits_BV=logits_BLV[:, 0],
                seen_BV=state.seen_BV.at[jnp.arange(B), token_B].set(True),
                drawn=state.drawn + 1,
                ended_B=state.ended_B | (token_B == self._eot_id),
            )
            tokens_BC = jax.lax.dynamic_update_slice(tokens_BC, token_B[:, None], (0, i))
            return i + 1, state, tokens_BC

        tokens_BC = jnp.full((B, chunk), self._eot_id, jnp.int32)
        _, state, tokens_BC = jax.lax.while_loop(more, draw, (0, state, tokens_BC))
        return state, tokens_BC


def _round_up(length: int) -> int:
    """The next multiple of LENGTH_MULTIPLE."""
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
