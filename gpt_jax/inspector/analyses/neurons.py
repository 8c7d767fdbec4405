"""The tokens of a corpus at which neurons are most active."""

import dataclasses
import functools
import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.config_tree import freeze
from gpt_jax.data import documents
from gpt_jax.data.config import DataConfig
from gpt_jax.data.given_text import describe_text
from gpt_jax.data.input_files import open_decompressed
from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress, check, top
from gpt_jax.inspector.analyses.sweep import BUDGET, activation_bytes
from gpt_jax.inspector.forward import forward
from gpt_jax.inspector.inspection import Inspection, NamedArray, check_index
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.points import points_of
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.mlp import MixtureOfExperts

HIDDEN = 'mlp.hidden'
WINDOW = 256  # tokens of the corpus that are read together, within the context of the model
WINDOWS = 8  # at once, where memory allows
BEFORE, AFTER = 8, 3  # tokens of context that are shown
SHOWN = 3  # tokens of each neuron in the table


class Example(NamedTuple):
    """A place where a neuron is active."""

    value: float
    tokens: tuple[int, ...]
    values: tuple[float, ...]  # of the neuron at each of the tokens
    at: int  # index of the place in them


@dataclasses.dataclass(frozen=True)
class TopTokens(Analysis):
    """The tokens at which some neurons are most active, with their context."""

    name = 'neurons'
    title = 'Neurons'
    about = (
        'A neuron is one number in the middle of an MLP. These are the most active neurons of the '
        'text, or chosen ones, and the tokens of a corpus at which each is highest.'
    )
    source = (
        'Geva et al. 2021, arXiv:2012.14913; Bills et al. 2023, Language models can explain neurons'
    )
    pitfall = (
        'The highest activations may show one meaning of several, and say nothing of low or '
        'negative ones; in a small corpus they are merely the least unlike (Bolukbasi et al. 2021, '
        'arXiv:2104.07143). The first position of each window is left out: it reads only itself.'
    )

    neurons: tuple[tuple[int, int], ...]  # (layer, neuron)
    activations: NamedArray  # [chosen, position]: of these neurons in the text
    examples: tuple[tuple[dict[str, Any], ...], ...]  # of each neuron: the highest first
    corpus_tokens: int

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
        corpus: str | os.PathLike = '',
        layer: int | None = None,
        neurons: Sequence[int] = (),
        count: int = 8,
        examples: int = 10,
    ) -> Self:
        """Finds the tokens at which neurons are most active; see `Analysis.run`.

        Args:
          inspector: of the model.
          text: chooses the neurons where none are given.
          inspection: all points for this text, if they are known.
          progress: of reading the corpus.
          corpus: a text or the name of a file; '': the text itself.
          layer: of the neurons; None: all.
          neurons: of `layer`; (): the most active ones of the text.
          count: number of neurons to choose.
          examples: tokens to keep per neuron.

        Raises:
            UserError: a layer or neuron does not exist, or the corpus cannot be read.
        """
        check(cls, inspector)
        if min(count, examples) < 1:
            raise UserError(f'count={count} and examples={examples} must be at least 1')
        inspection = inspection or inspector.inspect(text, points=[HIDDEN])
        hidden = {i: inspection[f'blocks.{i}.{HIDDEN}'].values for i in _layers(inspector)}
        chosen = _choose(hidden, layer=layer, neurons=neurons, count=count)
        by_layer: dict[int, list[int]] = {}
        for at, neuron in chosen:
            by_layer.setdefault(at, []).append(neuron)
        chosen = [(at, neuron) for at, each in by_layer.items() for neuron in each]
        kept: list[list[Example]] = [[] for _ in chosen]
        read = 0
        if corpus:
            length = min(WINDOW, inspector.config.max_seq_len)
            rows = max(1, min(WINDOWS, BUDGET // activation_bytes(inspector.config, length)))
            windows = _windows_of(inspector, corpus, length=length, progress=progress)
        else:
            length, rows, windows = len(inspection.tokens), 1, iter([[*inspection.tokens]])
        while batch := list(itertools.islice(windows, rows)):
            values = _activations(inspector, batch, by_layer, (rows, length))
            read += sum(map(len, batch))
            for i, each in enumerate(values):
                kept[i] = _highest([*kept[i], *_find(each, batch, examples)], examples)
        own = np.stack([hidden[at][:, neuron] for at, neuron in chosen])
        return cls(
            inspection.tokens,
            inspection.texts,
            neurons=tuple(chosen),
            activations=NamedArray(own, ('chosen', 'position')),
            examples=tuple(
                tuple(_describe(inspector, example) for example in each) for each in kept
            ),
            corpus_tokens=read,
        )

    @classmethod
    def obstacle(cls, inspector: Inspector) -> str:
        """Returns that no layer has a dense MLP; '' if one has."""
        if _layers(inspector):
            return ''
        reason = 'no layer has a dense MLP'
        if any(isinstance(mlp, MixtureOfExperts) for mlp in inspector.config.mlps):
            reason += '; the neurons of experts are no point of the model'
        return reason

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the tokens at which each neuron is highest."""
        rows = [('neuron', 'activation', 'token', 'context')]
        for (layer, neuron), examples in zip(self.neurons, self.examples, strict=True):
            for each in examples[:SHOWN]:
                texts, at = each['texts'], each['at']
                context = f'{"".join(texts[:at])}[{texts[at]}]{"".join(texts[at + 1 :])}'
                shown = (f'{each["value"]:.3f}', repr(texts[at]), repr(context))
                rows.append((f'{layer}.{neuron}', *shown))
        return rows


def _layers(inspector: Inspector) -> list[int]:
    """Returns the layers whose MLP is dense."""
    known = points_of(inspector.config, 1)
    return [i for i in range(inspector.config.num_layers) if f'blocks.{i}.{HIDDEN}' in known]


def _choose(
    hidden: Mapping[int, np.ndarray], *, layer: int | None, neurons: Sequence[int], count: int
) -> list[tuple[int, int]]:
    """Returns the (layer, neuron) that are named, or the most active ones."""
    if layer is None and len(neurons):
        raise UserError('neurons are numbered within a layer; give layer')
    if layer is not None:
        layer = check_index('layer', layer, max(hidden) + 1)
        if layer not in hidden:
            raise UserError(f'layer={layer} has no dense MLP; those that have: {[*hidden]}')
        hidden = {layer: hidden[layer]}
    if len(neurons):
        size = hidden[layer].shape[-1]
        return [(layer, each) for each in check_index('neuron', list(neurons), size)]
    highest = {i: values[_first(len(values)) :].max(0) for i, values in hidden.items()}
    places = [(i, neuron) for i, values in highest.items() for neuron in range(len(values))]
    return [places[i] for (i,) in top(np.concatenate([*highest.values()]), count)]


def _first(length: int) -> int:
    """Returns the first position that counts; that of a single token is its only one."""
    return min(1, length - 1)


def _windows_of(
    inspector: Inspector, corpus: str | os.PathLike, *, length: int, progress: ShowProgress
) -> Iterator[list[int]]:
    """Yields the ids of windows of a corpus, in order."""
    tokenizer = inspector.tokenizer
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    with tempfile.TemporaryDirectory(prefix='gpt_jax-') as scratch:
        path = pathlib.Path(describe_text(corpus, pathlib.Path(scratch)).source)
        with (
            open_decompressed(path) as (raw, file),
            progress(path.stat().st_size, unit='B', description='corpus') as display,
        ):
            rest: list[int] = []
            for piece in documents.read_text(file, path, DataConfig()):
                rest += tokenizer.encode_batch([piece.text])[0].tolist()
                size = length - len(begin)
                whole = len(rest) // size * size
                for start in range(0, whole, size):
                    yield inspector.encode(begin + rest[start : start + size])
                rest = rest[whole:]
                display.update(raw.tell())
            if rest:
                yield inspector.encode(begin + rest)


def _activations(
    inspector: Inspector,
    batch: list[list[int]],
    by_layer: Mapping[int, list[int]],
    shape: tuple[int, int],
) -> Float[np.ndarray, 'N B L']:
    """Returns the activations of neurons, layer by layer; windows are padded to `shape`."""
    tokens_BL = np.zeros(shape, np.int32)
    for row, window in zip(tokens_BL, batch, strict=False):
        row[: len(window)] = window
    chosen = {f'blocks.{layer}.{HIDDEN}': np.array(each) for layer, each in by_layer.items()}
    return np.asarray(_run(freeze(inspector.config), inspector.params, tokens_BL, chosen))


@functools.partial(jax.jit, static_argnames='config')
def _run(
    config: ModelConfig, params: Any, tokens_BL: Int[Array, 'B L'], chosen: dict[str, Any]
) -> Float[Array, 'N B L']:
    found = forward(config, params, tokens_BL, points=frozenset(chosen))
    values = [found[name][..., neurons] for name, neurons in chosen.items()]
    return jnp.moveaxis(jnp.concatenate(values, -1), -1, 0).astype(jnp.float32)


def _find(values_BL: np.ndarray, batch: list[list[int]], count: int) -> list[Example]:
    """Returns the places of a batch where a neuron is highest."""
    counted = np.full(values_BL.shape, -np.inf, np.float32)
    for row, values, window in zip(counted, values_BL, batch, strict=False):
        places = slice(_first(len(window)), len(window))
        row[places] = values[places]
    found = []
    for row, at in top(counted, count):
        if counted[row, at] == -np.inf:
            break
        begin, end = max(0, at - BEFORE), min(len(batch[row]), at + 1 + AFTER)
        found.append(
            Example(
                value=float(values_BL[row, at]),
                tokens=tuple(batch[row][begin:end]),
                values=tuple(values_BL[row, begin:end].tolist()),
                at=at - begin,
            )
        )
    return found


def _highest(examples: list[Example], count: int) -> list[Example]:
    return sorted(examples, key=lambda example: -example.value)[:count]


def _describe(inspector: Inspector, example: Example) -> dict[str, Any]:
    """Returns an example as JSON, with texts for tokens."""
    return {
        'value': example.value,
        'texts': list(inspector.token_texts(example.tokens)),
        'values': list(example.values),
        'at': example.at,
    }
