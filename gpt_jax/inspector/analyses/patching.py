"""Activation patching between two prompts."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress, outputs_of, top
from gpt_jax.inspector.analyses.sweep import (
    activation_bytes,
    effects,
    is_chosen,
    split,
    sweep,
)
from gpt_jax.inspector.forward import Change, Start, forward
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.points import points_in
from gpt_jax.model.config import ModelConfig

HEADS = 'attention.heads'
FIELDS = {'residual_before': 'residual', HEADS: 'heads'}
BRANCHES = {'attention_output': 'attention', 'mlp_output': 'mlp'}
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
    heads: NamedArray  # [layer, head]: the head at all positions
    # With `branches`, [layer, position]:
    attention: NamedArray | None = None  # the output of attention
    mlp: NamedArray | None = None  # the output of the MLP; None also without any

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        against: Text,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
        branches: bool = False,
    ) -> Self:
        """Patches each value of a run on `text` from a run on `against`; see `Analysis.run`.

        `branches` patches the outputs of attention and MLP by position, too: about three times the
        runs.

        Raises:
            UserError: the texts differ in their number of tokens, or are the same.
        """
        config, fields = freeze(inspector.config), FIELDS
        if branches:
            fields = FIELDS | {point: BRANCHES[point] for point in points_in(config, BRANCHES)}
        check_texts(inspector, text, against)
        mine = inspection or inspector.inspect(text, points=['logits', 'residual_before'])
        other = inspector.inspect(against, points=['logits', *fields])
        token, other_token = choose_tokens(mine.logits.values[-1], other.logits.values[-1])
        values = {
            point: outputs_of(other, point) if point in BRANCHES else other[point].values
            for point in fields
        }
        tokens, pair = jnp.asarray(mine.tokens), jnp.asarray([token, other_token])
        start, end = (_difference(each.logits.values[-1], pair) for each in (mine, other))

        def patch(layer: int, indices: np.ndarray) -> jax.Array:
            begin = Start(layer, mine[f'blocks.{layer}.residual_before'].values)
            return _patch(config, inspector.params, tokens, pair, values, begin, indices)

        grid = _grid(config, len(tokens), fields)
        moved = sweep(
            patch,
            grid,
            wanted=_may_differ(grid, mine.tokens, other.tokens),
            bytes_each=activation_bytes(config, len(mine.tokens)),
            progress=progress,
            description='patching',
        )
        arrays = {
            fields[point]: NamedArray(part, ('layer', 'head' if point == HEADS else 'position'))
            for point, part in split(grid, moved / (end - start)).items()
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
        for field in (FIELDS | BRANCHES).values():
            if (array := getattr(self, field)) is None:
                continue
            values = array.values
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


def _grid(config: ModelConfig, length: int, points: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Returns the candidates of points, in the order of the tables, as `jax.jit` sorts keys."""
    sizes = {point: config.num_heads if point == HEADS else length for point in FIELDS | BRANCHES}
    return {point: (config.num_layers, size) for point, size in sizes.items() if point in points}


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
    start: Start,
    indices_C: Int[Array, 'C'],
) -> Float[Array, 'C']:
    """Returns what each of some replacements changes of the logit difference."""
    grid = _grid(config, len(tokens_L), values)

    def measure(index: Int[Array, '']) -> Float[Array, '']:
        changes = {
            f'blocks.{layer}.{point}': (Change(mask[layer, :, None], values[point][layer]),)
            for point, mask in is_chosen(grid, index).items()
            for layer in range(config.num_layers)
        }
        logits = frozenset({'logits'})
        found = forward(
            config, params, tokens_L[None], changes, points=logits, last=True, start=start
        )
        return _difference(found['logits'][0, 0], pair)

    return effects(measure, grid, indices_C)
