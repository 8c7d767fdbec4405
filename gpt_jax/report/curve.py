"""A metric over the steps of a run."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

DIGITS = 6  # significant digits of a value in a page


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values at increasing steps; a value that is not finite is NaN."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> 'Curve':
        """Returns the points whose value is finite."""
        kept = np.isfinite(self.values)
        return Curve(self.steps[kept], self.values[kept])

    def to_json(self, points: int) -> dict[str, Any]:
        """Returns at most `points` points: means of bins of neighbours, with their range."""
        size = math.ceil(len(self) / points)
        if size <= 1:
            return {'steps': self.steps.tolist(), 'values': _rounded(self.values)}
        bins = np.arange(0, len(self), size)
        counts = np.diff([*bins, len(self)])
        ends = bins + counts - 1
        means = np.add.reduceat(self.values, bins) / counts
        return {
            'steps': self.steps[ends].tolist(),
            'values': _rounded(means),
            'low': _rounded(np.minimum.reduceat(self.values, bins)),
            'high': _rounded(np.maximum.reduceat(self.values, bins)),
        }


def read_curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Returns the curve of each metric in the rows of `metrics.jsonl`."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != 'step' and (value is None or type(value) in (int, float)):
                found.setdefault(name, {})[row['step']] = math.nan if value is None else value
    return {
        name: Curve(*map(np.array, zip(*sorted(points.items()), strict=True)))
        for name, points in found.items()
    }


def training_time(curves: Mapping[str, Curve], *, tokens_per_step: int) -> Curve | None:
    """Returns the seconds of all steps up to each row with a speed; None if there is none.

    Compilation and evaluations are not part of the speeds.
    """
    speed = curves.get('train/tokens_per_second')
    if speed is None or not len(speed := speed.finite()):
        return None
    step_seconds = tokens_per_step / np.maximum(speed.values, 1e-9)
    return Curve(speed.steps, np.cumsum(step_seconds * np.diff(speed.steps, prepend=0)))


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f'{value:.{DIGITS}g}') for value in values]
