"""Generation of token ids: the whole loop runs on the device.

Few programs are compiled, and all decoders of one config share them. Batches are padded to a power
of two, prompts to one of a few lengths. The cache starts small and doubles when it is full, so
attention reads a cache about as long as the text.

Sharded weights stay sharded: all processes of the mesh generate together, and each holds the whole
text. With replicated weights, each process generates on one of its own devices.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig, WeightType
from gpt_jax.inference.programs import (
    DecodeSettings,
    DecodeState,
    draw_tokens,
    empty_rows,
    extend_row,
    prefill,
    resize,
    row_key_data,
)
from gpt_jax.inference.sampling import SamplingRule, SeenTokens, make_rule
from gpt_jax.inference.weights import prepare_weights
from gpt_jax.kernels.experts import choose_expert_kernel
from gpt_jax.model.config import DType, ExpertKernel, Kernels, MatmulPrecision, ModelConfig
from gpt_jax.parallel.rules import decoding_rules, on_mesh

LEAST_PROMPT = 32  # smallest length that prompts are padded to
LEAST_CAPACITY = 128  # smallest number of cache slots
# XLA's matrix-vector path on GPUs is slower than a product with eight rows.
LEAST_ROWS = {'gpu': 8}
# XLA on CPUs multiplies few bfloat16 rows at a twentieth of the memory bandwidth.
COMPUTE_DTYPES = {'cpu': DType.FLOAT32}


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
      vocab_size: ids from here on are never drawn.
      least_rows: smallest batch; padding a smaller one to it costs no time.
      statistics: of the latest call of `generate`, updated after each piece.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        *,
        vocab_size: int,
        eot_id: int,
        weight_dtype: WeightType = WeightType.COMPUTE,
        consume: bool = False,
    ):
        """Takes parameters in the stored layout; ids >= `vocab_size` are never drawn.

        With `consume`, `params` is empty afterwards, and not all weights are in memory twice.
        With weights sharded over processes, this and `generate` are collective.
        """
        backend = jax.default_backend()
        self.config, self.vocab_size = config, vocab_size
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
        self.least_rows = LEAST_ROWS.get(backend, 1)
        self._mesh = _mesh_of(params)
        own = params if self._mesh else jax.tree.map(_own_copy, params)
        if consume and own is not params:
            params.clear()
        self.params = prepare_weights(own, model, weight_dtype, consume=consume, call=self._call)
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
        for prompt in prompts:
            self.check_prompt(prompt)
        context = self.config.max_seq_len
        B, drafts = len(prompts), sampling.draft_tokens
        rows = [list(prompt) for prompt in prompts]
        padded = max(self.least_rows, _next_power(B))
        rule = make_rule([sampling] * padded, vocab_size=self.vocab_size)
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
                state = self.resize(state, slots=slots)
            room = min(context + 1, state.text_BS.shape[1] - drafts) - filled
            remaining = sampling.max_new_tokens - limit
            limit += min(chunk or remaining, remaining, room)
            state = self.draw(
                state, key_data, rule, np.full(padded, limit, np.int32), drafts=drafts
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

    def check_prompt(self, prompt: Sequence[int]) -> None:
        """Raises UserError if the prompt is longer than the context, or empty."""
        context = self.config.max_seq_len
        if not len(prompt):
            raise UserError('the prompt is empty; give one token or more')
        if len(prompt) > context:
            raise UserError(
                f'the prompt has {len(prompt)} tokens, the context holds {context} '
                f'(config.model.max_seq_len); shorten it'
            )

    def empty(self, *, rows: int, slots: int, best: int) -> DecodeState:
        """Returns rows without text, for `extend`; scores of the `best` likeliest are kept."""
        state = self._call(empty_rows, rows=rows, slots=slots, best=best, settings=self._settings)
        if self._mesh is None:
            # Committed to the device as the states that programs return, or each compiles twice.
            state = jax.device_put(state, jax.tree.leaves(self.params)[0].sharding)
        return state

    def extend(
        self,
        state: DecodeState,
        tokens: Sequence[int],
        *,
        row: int,
        start: int,
        width: int,
        outgrew: bool = False,
        scores: bool = False,
    ) -> tuple[DecodeState, jax.Array]:
        """Puts tokens into a row from slot `start` on, in place of those that were there.

        They are padded to `width`, which must fit. A new text begins, whose number of drawn tokens
        is 0, unless a text that `outgrew` the context continues from its last part. With `scores`,
        the log-probabilities of the tokens are kept. Returns the state and the sum `[D]` of the
        tokens' last hidden states.
        """
        padded = np.zeros(width, np.int32)
        padded[: len(tokens)] = tokens
        return self._call(
            extend_row,
            self.params,
            state,
            padded,
            np.int32(row),
            np.int32(start),
            np.int32(len(tokens)),
            np.bool_(outgrew),
            scores=scores,
            settings=self._settings,
        )

    def draw(
        self,
        state: DecodeState,
        key_data: np.ndarray,
        rule: SamplingRule,
        limit: np.ndarray,
        *,
        drafts: int = 0,
        ranks: bool = False,
    ) -> DecodeState:
        """Draws tokens until each row has `limit` of them, or has ended; see `draw_tokens`."""
        return self._call(
            draw_tokens,
            self.params,
            state,
            key_data,
            rule,
            limit,
            drafts=drafts,
            ranks=ranks,
            settings=self._settings,
        )

    def resize(self, state: DecodeState, *, slots: int) -> DecodeState:
        """Returns the state with a cache of `slots` slots; longer rows lose their last tokens."""
        return self._call(resize, state, slots=slots)

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
            prefill,
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
            seen=_go_on(state.seen, fresh.seen),
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


def _go_on(before: SeenTokens | None, fresh: SeenTokens | None) -> SeenTokens | None:
    """Returns the seen tokens of texts that go on from their last part, which is `fresh`."""
    return before and SeenTokens(before.prompt_BV | fresh.prompt_BV, before.drawn_BV)


def _own_copy(leaf: Any) -> Any:
    """Returns one local device's copy of a replicated array; other leaves as they are."""
    return leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf


def _next_power(count: int) -> int:
    """Returns the smallest power of two >= `count`."""
    return 1 << max(0, count - 1).bit_length()


def _rung(length: int, *, least: int, most: int) -> int:
    """Returns the smallest power of two >= `length`, clipped to [`least`, `most`]."""
    return min(max(least, _next_power(length)), most)
