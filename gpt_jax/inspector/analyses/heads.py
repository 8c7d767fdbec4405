"""Kinds of attention heads, by where they look."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress, check, top
from gpt_jax.inspector.analyses.predictions import next_losses
from gpt_jax.inspector.forward import run_forward
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text

SEQUENCES = 8  # random ones, each repeated once
LENGTH = 25  # of each, before it is repeated
KINDS = ('previous', 'duplicate', 'induction', 'first', 'induction_random')
SHOWN = 4  # heads of each kind in the table


@dataclasses.dataclass(frozen=True)
class HeadKinds(Analysis):
    """Scores of heads as previous-token, duplicate-token, induction and first-token heads."""

    name = 'heads'
    title = 'Kinds of heads'
    about = (
        'The mean attention of each head to the token before, to earlier copies of the token, to '
        'what followed such copies (induction), and to the first token. Induction is also '
        'measured on random tokens that repeat, which nothing but copying predicts.'
    )
    source = 'Olsson et al. 2022, arXiv:2209.11895; duplicates: Wang et al. 2022, arXiv:2211.00593'
    pitfall = (
        'A score says where a head looks, not what it does with it; ablate it to know. Scores on '
        'the text rest on few tokens, and a score of 0 may mean that no token repeats.'
    )

    previous: NamedArray  # [layer, head]: to the token before
    duplicate: NamedArray  # to all earlier equal tokens
    induction: NamedArray  # to all tokens after earlier equal tokens
    first: NamedArray  # to the first token
    induction_random: NamedArray  # as induction, on repeated random tokens
    repeats: int  # positions of the text whose token occurred before
    loss_random: float  # of the random tokens, in nats
    loss_repeated: float  # of their repetition

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
        seed: int = 0,
    ) -> Self:
        """Scores the heads on a text and on random tokens of `seed`; see `Analysis.run`."""
        del progress
        check(cls, inspector)
        inspection = inspection or inspector.inspect(text, points=['attention.weights'])
        weights = inspection['attention.weights']
        tokens = np.array(inspection.tokens)
        scores = {name: score(weights.values, where) for name, where in targets(tokens).items()}
        random, before, after = _on_random_tokens(inspector, seed)
        scores['induction_random'] = random
        dims = weights.dims[:2]
        return cls(
            inspection.tokens,
            inspection.texts,
            **{name: NamedArray(scores[name].astype(np.float32), dims) for name in KINDS},
            repeats=int(targets(tokens)['duplicate'].any(-1).sum()),
            loss_random=before,
            loss_repeated=after,
        )

    @classmethod
    def obstacle(cls, inspector: Inspector) -> str:
        """Returns why nothing can be repeated within the context; '' if it can."""
        if _random_length(inspector) >= 2:
            return ''
        context = inspector.config.max_seq_len
        return f'no sequence can repeat within a context of config.model.max_seq_len={context}'

    def above(self, kind: str, threshold: float) -> list[tuple[int, int]]:
        """Returns (layer, head) of the heads whose score exceeds a threshold, the highest first.

        Args:
          kind: previous, duplicate, induction, first or induction_random.
          threshold: between 0 and 1.

        Raises:
            UserError: there is no such kind.
        """
        if kind not in KINDS:
            raise UserError(f'kind={kind!r} must be one of {", ".join(KINDS)}')
        values = getattr(self, kind).values
        return [at for at in top(values, values.size) if values[at] > threshold]

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the heads with the highest scores, `layer.head`, by kind."""
        count = min(SHOWN, self.previous.values.size)
        rows = [('kind', *(f'head {i + 1}' for i in range(count)))]
        for kind in KINDS:
            values = getattr(self, kind).values
            best = top(values, count)
            cells = (f'{layer}.{head} {values[layer, head]:.0%}' for layer, head in best)
            rows.append((kind.replace('_', ', '), *cells))
        return rows


def targets(tokens_L: Int[np.ndarray, 'L']) -> dict[str, Bool[np.ndarray, 'L S']]:
    """Returns by kind the sources at which a head of this kind looks from each position."""
    places = np.arange(len(tokens_L))
    query, source = places[:, None], places[None, :]
    equal = tokens_L[:, None] == tokens_L[None, :]
    followed = np.roll(equal, 1, axis=1) & (source > 0)  # the token before the source is equal
    return {
        'previous': source == query - 1,
        'duplicate': equal & (source < query),
        'induction': followed & (source < query),
        'first': (source == 0) & (query > 0),
    }


def score(
    weights: Float[np.ndarray, '... L S'], where: Bool[np.ndarray, 'L S']
) -> Float[np.ndarray, '...']:
    """Returns the mean weight on targets, over the positions that have one; 0 if none has."""
    counted = where.any(-1)
    total = (weights * where).sum(-1)
    return total[..., counted].sum(-1) / max(1, counted.sum())


def _random_length(inspector: Inspector) -> int:
    begin = inspector.tokenizer.bos_id is not None
    return min(LENGTH, (inspector.config.max_seq_len - begin) // 2)


def _on_random_tokens(inspector: Inspector, seed: int) -> tuple[np.ndarray, float, float]:
    """Returns the induction scores on repeated random tokens, and the losses of both halves."""
    length = _random_length(inspector)
    rows = random_repeats(inspector, seed=seed, count=SEQUENCES, length=length)
    names = [f'blocks.{layer}.attention.weights' for layer in range(inspector.config.num_layers)]
    points = frozenset(['logits', *names])
    found = run_forward(inspector.config, inspector.params, rows, points=points)
    weights = np.stack([np.asarray(found[name], np.float32).mean(0) for name in names])
    size = rows.shape[1]
    where = np.zeros((size, size), bool)
    second = np.arange(size - length, size)
    where[second, second - length + 1] = True
    loss = np.asarray(
        jax.vmap(next_losses)(found['logits'], jnp.asarray(rows))
    )  # of the next token
    middle = size - length - 1
    first, repeated = loss[:, middle - length + 1 : middle], loss[:, middle + 1 :]
    return score(weights, where), float(first.mean()), float(repeated.mean())


def random_repeats(
    inspector: Inspector, *, seed: int, count: int, length: int
) -> Int[np.ndarray, 'N L']:
    """Returns rows of random tokens of the vocabulary, each row followed by itself.

    Special tokens are not drawn. Each row begins with the token that begins texts, if there is one.
    """
    tokenizer = inspector.tokenizer
    size = min(inspector.config.vocab_size, tokenizer.vocab_size)
    ids = np.setdiff1d(np.arange(size), [*tokenizer.special_tokens.values()])
    random = np.random.default_rng(seed)
    once = np.stack([random.choice(ids, length, replace=len(ids) < length) for _ in range(count)])
    begin = [] if tokenizer.bos_id is None else [np.full((count, 1), tokenizer.bos_id)]
    return np.concatenate([*begin, once, once], axis=1)
