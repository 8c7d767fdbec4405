"""Activation patching between two prompts."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress, top
from gpt_jax.inspector.analyses.sweep import (
    activation_bytes,
    is_chosen,
    run_in_chunks,
    split,
)
from gpt_jax.inspector.forward import Change, forward
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.model.config import ModelConfig

HEADS = 'attention.heads'
FIELDS = {
    'residual_before': 'residual',
    'attention_output': 'attention',
    'mlp_output': 'mlp',
    HEADS: 'heads',
}
SHOWN = 5  # rows of the table for each point


@dataclasses.dataclass(frozen=True)
class Patching(Analysis):
    """The part of the way to another prompt's prediction that each replaced value goes."""

    name = 'patching'
    title = 'Activation patching'
    about = (
        'One value of this run is replaced by that of the run on another prompt. 0: the prediction '
        'stays; 1: it becomes that of the other prompt, measured by the difference of two logits.'
    )
    source = (
        'Meng et al. 2022, arXiv:2202.05262; Wang et al. 2022, arXiv:2211.00593; how to read it: '
        'Heimersheim and Nanda 2024, arXiv:2404.15255'
    )
    pitfall = (
        'It shows what differs between these two prompts, not all that matters. A low value may be '
        'a part that others back up, and values above 1 or below 0 occur.'
    )

    other_tokens: tuple[int, ...]
    other_texts: tuple[str, ...]
    token: int  # the most probable next token of this text
    other_token: int  # that of the other text, or that whose logit rises most if they agree
    token_text: str
    other_token_text: str
    difference: float  # logit of `token` minus that of `other_token`, after this text
    other_difference: float  # the same after the other text
    residual: NamedArray  # [layer, position]: the residual stream before the layer
    attention: NamedArray  # [layer, position]: the output of attention
    mlp: NamedArray  # [layer, position]: the output of the MLP
    heads: NamedArray  # [layer, head]: the head at all positions

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        against: Text,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
    ) -> Self:
        """Patches each value of a run on `text` from a run on `against`; see `Analysis.run`.

        Raises:
            UserError: the texts differ in their number of tokens, or are the same.
        """
        config, points = freeze(inspector.config), ['logits', *FIELDS]
        check_texts(inspector, text, against)
        mine = inspection or inspector.inspect(text, points=['logits'])
        other = inspector.inspect(against, points=points)
        token, other_token = choose_tokens(mine.logits.values[-1], other.logits.values[-1])
        names = [f'blocks.{i}.{point}' for i in range(config.num_layers) for point in FIELDS]
        values = {name: other.arrays[name] for name in names}
        grid, tokens = _grid(config, len(mine.tokens)), jnp.asarray(mine.tokens)
        pair = jnp.asarray([token, other_token])
        differ = _may_differ(grid, mine.tokens, other.tokens)
        candidates = np.append(np.flatnonzero(differ), differ.size)  # the last changes nothing
        differences = run_in_chunks(
            lambda i: _patch(config, inspector.params, tokens, pair, values, candidates[i]),
            candidates.size,
            bytes_each=activation_bytes(config, len(mine.tokens)),
            progress=progress,
            description='patching',
        )
        start, end = differences[-1], _difference(other.logits.values[-1], pair)
        moved = np.zeros(differ.size, np.float32)
        moved[differ] = (differences[:-1] - start) / (end - start)
        arrays = {
            FIELDS[point]: NamedArray(part, ('layer', 'head' if point == HEADS else 'position'))
            for point, part in split(grid, moved).items()
        }
        token_text, other_text = inspector.token_texts([token, other_token])
        return cls(
            mine.tokens,
            mine.texts,
            other_tokens=other.tokens,
            other_texts=other.texts,
            token=token,
            other_token=other_token,
            token_text=token_text,
            other_token_text=other_text,
            difference=float(start),
            other_difference=float(end),
            **arrays,
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the places of each point whose replacement moves the prediction most."""
        pair = f'{self.token_text!r} to {self.other_token_text!r}'
        rows = [('replaced', 'layer', 'at', f'moved from {pair}')]
        for field in FIELDS.values():
            values = getattr(self, field).values
            for layer, at in top(values, SHOWN):
                where = f'head {at}' if field == 'heads' else f'{at} {self.texts[at]!r}'
                rows.append((field, str(layer), where, f'{values[layer, at]:.1%}'))
        return rows


def check_texts(inspector: Inspector, text: Text, against: Text) -> None:
    """Raises UserError if two texts differ in their number of tokens, or are the same."""
    mine, other = inspector.encode(text), inspector.encode(against)
    if len(mine) != len(other):
        shown = [' '.join(map(repr, inspector.token_texts(ids))) for ids in (mine, other)]
        raise UserError(
            f'the texts must have the same number of tokens, and have {len(mine)} and '
            f'{len(other)}: {shown[0]} against {shown[1]}'
        )
    if mine == other:
        raise UserError('the two texts are the same; give another to patch from')


def choose_tokens(mine_V: np.ndarray, other_V: np.ndarray) -> tuple[int, int]:
    """Returns the most probable token of each of two distributions, given as logits.

    If it is the same, the second is the token whose logit rises most from one to the other.
    """
    token, other_token = int(mine_V.argmax()), int(other_V.argmax())
    if token == other_token:
        rise = other_V - mine_V
        rise[token] = -np.inf
        other_token = int(rise.argmax())
    return token, other_token


def _grid(config: ModelConfig, length: int) -> dict[str, tuple[int, ...]]:
    layers = config.num_layers
    return {point: (layers, config.num_heads if point == HEADS else length) for point in FIELDS}


def _may_differ(
    grid: Mapping[str, tuple[int, ...]], mine: Sequence[int], other: Sequence[int]
) -> np.ndarray:
    """Returns which candidates may differ between two texts: those from their first difference on.

    What a causal model computes before that is the same, and patching it moves nothing.
    """
    first = next(i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
    differ = []
    for point, (layers, places) in grid.items():
        differ.append(np.tile(np.arange(places) >= (0 if point == HEADS else first), layers))
    return np.concatenate(differ)


def _difference(logits_V: Float[Array, 'V'], pair: Int[Array, '2']) -> Float[Array, '']:
    first, second = pair
    return logits_V[first] - logits_V[second]


@functools.partial(jax.jit, static_argnames='config')
def _patch(
    config: ModelConfig,
    params: Any,
    tokens_L: Int[Array, 'L'],
    pair: Int[Array, '2'],
    values: dict[str, Any],
    indices_C: Int[Array, 'C'],
) -> Float[Array, 'C']:
    """Returns the logit difference after each of some replacements."""

    def measure(index: Int[Array, '']) -> Float[Array, '']:
        chosen = is_chosen(_grid(config, len(tokens_L)), index)
        changes = {
            (name := f'blocks.{layer}.{point}'): (Change(mask[layer, :, None], values[name]),)
            for point, mask in chosen.items()
            for layer in range(config.num_layers)
        }
        logits = frozenset({'logits'})
        found = forward(config, params, tokens_L[None], changes, points=logits, last=True)
        return _difference(found['logits'][0, 0], pair)

    return jax.vmap(measure)(indices_C)
