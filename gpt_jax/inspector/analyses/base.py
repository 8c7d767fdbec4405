"""The base of every analysis."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.page import frame
from gpt_jax.inspector.plot import plot
from gpt_jax.telemetry.progress import Progress

ShowProgress = Callable[..., Progress]  # makes the display of a task from Progress' arguments
QUIET: ShowProgress = functools.partial(Progress, quiet=True)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The result of one analysis of one text; a subclass is listed in `ANALYSES`.

    A subclass says what it shows in `about`, where it comes from in `source`, and how it misleads
    in `pitfall`, each in a sentence or two that a page shows beside it.
    """

    name: ClassVar[str]  # also the key in ANALYSES, and of the view in the page
    title: ClassVar[str]
    about: ClassVar[str]
    source: ClassVar[str]
    pitfall: ClassVar[str]

    tokens: tuple[int, ...]
    texts: tuple[str, ...]  # of each token

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
    ) -> Self:
        """Analyses a text.

        Args:
          inspector: of the model.
          text: a text, or its ids.
          inspection: all points for this text, if they are known.
          progress: of analyses that run the model many times.

        Raises:
            UserError: the text is empty or too long, or `obstacle` says why it cannot run.
        """
        raise NotImplementedError

    @classmethod
    def obstacle(cls, inspector: Inspector) -> str:
        """Returns why the analysis does not apply to a model; '' if it does."""
        return ''

    def data(self) -> dict[str, Any]:
        """Returns what the page draws: JSON, and NamedArrays, which are stored compactly."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if isinstance(
                value := getattr(self, field.name), NamedArray | tuple | dict | int | float | str
            )
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Returns a small table for the terminal, headings first."""
        raise NotImplementedError

    def plot(self, name: str = '', *, axes: Any = None, **indices: int) -> Any:
        """Draws one of the arrays with matplotlib, which is optional; returns the axes.

        `maps.plot('weights', layer=3, head=2)`.

        Args:
          name: of the array; '': the first.
          axes: matplotlib's, to draw on; None: those of a new figure.
          **indices: by dimension, of arrays with more than two.

        Raises:
            UserError: matplotlib is not installed, there is no such array, or it has more than two
                dimensions.
        """
        arrays = {k: value for k, value in self.data().items() if isinstance(value, NamedArray)}
        name = name or next(iter(arrays))
        if name not in arrays:
            raise UserError(f'{self.name} has no array {name!r}; it has {", ".join(arrays)}')
        title = ', '.join([self.title, name, *(f'{k} {index}' for k, index in indices.items())])
        return plot(arrays[name].sel(**indices), title=title, texts=self.texts, axes=axes)

    def _repr_html_(self) -> str:
        return frame([self])


def check(cls: type[Analysis], inspector: Inspector) -> None:
    """Raises UserError if an analysis does not apply to a model."""
    if reason := cls.obstacle(inspector):
        raise UserError(f'{cls.title.lower()}: {reason}')


def outputs_of(inspection: Inspection, point: str) -> np.ndarray:
    """Returns the output of a branch `[layer, position, d_model]`; 0 in layers without it."""
    names = [f'blocks.{layer}.{point}' for layer in range(inspection.num_layers)]
    absent = np.zeros(inspection.points['blocks.0.residual_before'].shape, np.float32)
    return np.stack(
        [inspection[name].values if name in inspection.points else absent for name in names]
    )


def top(values: np.ndarray, count: int) -> list[tuple[int, ...]]:
    """Returns the indices of the largest values, the largest first."""
    order = np.argsort(-values, axis=None, kind='stable')[:count]
    return [tuple(map(int, np.unravel_index(each, values.shape))) for each in order]
