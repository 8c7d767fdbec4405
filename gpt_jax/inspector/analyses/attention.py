"""The attention of every head, and its rollout over the layers."""

import dataclasses
from typing import Self

import numpy as np

from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text


@dataclasses.dataclass(frozen=True)
class AttentionMaps(Analysis):
    """The weights with which each head of each layer reads earlier tokens."""

    name = 'attention'
    title = 'Attention'
    about = (
        'Each row is a token, and each column an earlier token whose value the head adds, weighted '
        'by the shade. Rollout multiplies the mean weights of the layers, half of each residual.'
    )
    source = (
        'Vaswani et al. 2017, arXiv:1706.03762; rollout: Abnar and Zuidema 2020, arXiv:2005.00928'
    )
    pitfall = (
        'Attention is not explanation: a weight says what is read, not what difference it makes. '
        'Much of it rests on the first token where a head has nothing to do.'
    )

    weights: NamedArray  # [layer, head, position, source]
    rollout: NamedArray  # [layer, position, source]: of the layers up to this one

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
    ) -> Self:
        """Returns the maps of a text; see `Analysis.run`."""
        del progress
        inspection = inspection or inspector.inspect(text, points=['attention.weights'])
        weights = inspection['attention.weights']
        return cls(inspection.tokens, inspection.texts, weights, roll_out(weights))

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the token that the last position reads most, by layer and head."""
        last = self.weights.sel(position=-1)
        kind, count, _ = last.dims[1], *last.values.shape[1:]
        rows = [('layer', *(f'{kind} {head}' for head in range(count)))]
        for layer, values in enumerate(last.values):
            best = values.argmax(-1)
            cells = (f'{self.texts[i]!r} {values[head, i]:.0%}' for head, i in enumerate(best))
            rows.append((str(layer), *cells))
        return rows


def roll_out(weights: NamedArray) -> NamedArray:
    """Returns the product over layers of the mean over heads, mixed with the residual stream."""
    mean = weights.mean(weights.dims[1]).values.astype(np.float64)
    mixed = 0.5 * mean + 0.5 * np.eye(mean.shape[-1])
    rolled = [mixed[0]]
    for layer in mixed[1:]:
        rolled.append(layer @ rolled[-1])
    return NamedArray(np.stack(rolled).astype(np.float32), ('layer', 'position', 'source'))
