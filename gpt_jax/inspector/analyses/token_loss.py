"""The loss of each token, and what the model expected in its place."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress
from gpt_jax.inspector.analyses.predictions import (
    BITS,
    Predictions,
    describe_logits,
    texts_by_id,
)
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text

COUNT = 10  # tokens listed per position


@dataclasses.dataclass(frozen=True)
class TokenLoss(Analysis):
    """The loss of each token given those before it, and the most probable tokens."""

    name = 'token_loss'
    title = 'Loss of each token'
    about = (
        'How surprised the model is by each token: -log of the probability that it gave the token, '
        'in nats; a bit is 0.693 nats. The last distribution is that of the token to come.'
    )
    source = 'Shannon 1951, Prediction and Entropy of Printed English'
    pitfall = (
        'Losses of models with different tokenizers do not compare token by token: a longer token '
        'carries more. The first token has no loss, as nothing predicts it.'
    )

    loss: NamedArray  # [position]: of the token after each position but the last, in nats
    bits: NamedArray  # the same, in bits
    probability: NamedArray  # as loss
    rank: NamedArray  # as loss; 1 is the most probable token
    entropy: NamedArray  # [position], of each distribution, in bits
    choices: NamedArray  # [position, choice]: ids, the most probable first
    probabilities: NamedArray  # [position, choice]
    vocabulary: dict[str, str]  # texts of the ids

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
        count: int = COUNT,
    ) -> Self:
        """Returns the losses of a text, and `count` tokens per position."""
        del progress
        inspection = inspection or inspector.inspect(text, points=['logits'])
        tokens = jnp.asarray(inspection.tokens)
        found = _describe(inspection.logits.values, tokens, count)
        found = Predictions(*map(np.asarray, found))
        place = ('position',)
        return cls(
            inspection.tokens,
            inspection.texts,
            loss=NamedArray(found.loss, place),
            bits=NamedArray(found.loss * np.float32(BITS), place),
            probability=NamedArray(np.exp(-found.loss), place),
            rank=NamedArray(found.rank, place),
            entropy=NamedArray(found.entropy, place),
            choices=NamedArray(found.ids, (*place, 'choice')),
            probabilities=NamedArray(found.probabilities, (*place, 'choice')),
            vocabulary=texts_by_id(inspector, found.ids.ravel()),
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Returns each token, its loss and what was expected; last, the token to come."""
        rows = [('token', 'nats', 'bits', 'probability', 'rank', 'expected')]
        unknown = ('-',) * 4
        rows.append((repr(self.texts[0]), *unknown, '-'))
        best = [
            f'{self.vocabulary[str(ids[0])]!r} {shares[0]:.1%}'
            for ids, shares in zip(self.choices.values, self.probabilities.values, strict=True)
        ]
        for i, text in enumerate(self.texts[1:]):
            numbers = (
                f'{self.loss.values[i]:.3f}',
                f'{self.bits.values[i]:.3f}',
                f'{self.probability.values[i]:.2%}',
                f'{self.rank.values[i]}',
            )
            rows.append((repr(text), *numbers, best[i]))
        rows.append(('(next)', *unknown, best[-1]))
        return rows


_describe = jax.jit(describe_logits, static_argnames='count')
