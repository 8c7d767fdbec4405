"""The residual stream: its norm, and the size and direction of each layer's writes."""

import dataclasses
from typing import Self

import numpy as np

from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress, outputs_of
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.points import points_in

POINTS = (
    'residual_before',
    'residual_middle',
    'residual_after',
    'attention_output',
    'mlp_output',
)


@dataclasses.dataclass(frozen=True)
class Residual(Analysis):
    """Norms of the residual stream and of what layers write to it, and the writes' cosines."""

    name = 'residual'
    title = 'Residual stream'
    about = (
        'The length of the residual stream after each layer, and of the vector that attention and '
        'MLP add. A cosine of 1 with the stream strengthens it, of 0 adds something new, and of '
        '-1 erases.'
    )
    source = (
        'Heimersheim and Turner 2023, https://www.alignmentforum.org/posts/8mizBCm3dyc432nK8; '
        'Elhage et al. 2021, https://transformer-circuits.pub/2021/framework'
    )
    pitfall = (
        'A long write is not an important one: the next norm divides by the length of the stream, '
        'and a few dimensions that no layer reads can make up most of it, above all at the first '
        'token.'
    )

    norms: NamedArray  # [stage, position]: before layer 0, and after each layer
    attention_norms: NamedArray  # [layer, position]
    mlp_norms: NamedArray  # [layer, position]
    attention_cosines: NamedArray  # [layer, position], with the stream that it is added to
    mlp_cosines: NamedArray  # [layer, position]
    attention_repeats: NamedArray  # [layer, position], with attention's write of the layer before
    mlp_repeats: NamedArray  # [layer, position]; both begin with layer 1

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
    ) -> Self:
        """Returns the norms and cosines of a text; see `Analysis.run`."""
        del progress
        inspection = inspection or inspector.inspect(
            text, points=points_in(inspector.config, POINTS)
        )
        before, middle, after, attention, mlp = (outputs_of(inspection, each) for each in POINTS)
        layers = ('layer', 'position')
        norm = lambda x: np.linalg.norm(x, axis=-1)  # noqa: E731
        stages = norm(np.concatenate([before[:1], after]))
        return cls(
            inspection.tokens,
            inspection.texts,
            norms=NamedArray(stages, ('stage', 'position')),
            attention_norms=NamedArray(norm(attention), layers),
            mlp_norms=NamedArray(norm(mlp), layers),
            attention_cosines=NamedArray(cosine(attention, before), layers),
            mlp_cosines=NamedArray(cosine(mlp, middle), layers),
            attention_repeats=NamedArray(cosine(attention[1:], attention[:-1]), layers),
            mlp_repeats=NamedArray(cosine(mlp[1:], mlp[:-1]), layers),
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Returns means over the positions by layer."""
        heads = ('layer', 'stream before', 'attention', 'cosine', 'MLP', 'cosine', 'stream after')
        rows = [heads]
        norms = self.norms.mean('position').values
        for layer in range(len(norms) - 1):
            numbers = (
                norms[layer],
                self.attention_norms.values[layer].mean(),
                self.attention_cosines.values[layer].mean(),
                self.mlp_norms.values[layer].mean(),
                self.mlp_cosines.values[layer].mean(),
                norms[layer + 1],
            )
            rows.append((str(layer), *(f'{number:.3g}' for number in numbers)))
        return rows


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosines of the last dimensions; 0 where a vector is 0."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.where(lengths == 0, 1, lengths)
