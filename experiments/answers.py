"""Statistics and pictures of the experiments: from the results of a sweep to an answer."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from gpt_jax import files

AGREES, DISAGREES, UNDECIDED = 'agrees', 'does not agree', 'undecided'
Record = Mapping[str, Any]  # of a trial in results.json


class Interval(NamedTuple):
    """A mean and its 95 % interval, by Student's distribution."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        size = abs(self.mean)
        digits = 0 if size >= 100 else 2 if size >= 10 else 3
        mean, low, high = (f'{value:z.{digits}f}' for value in self)
        return f'{mean} ({low} to {high})'

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def interval(values: Iterable[float]) -> Interval:
    """Returns the mean of independent values with its interval; there must be two or more."""
    array = np.asarray([*values], np.float64)
    error = stats.sem(array)
    half = float(stats.t.ppf(0.975, len(array) - 1) * error)
    mean = float(array.mean())
    return Interval(mean, mean - half, mean + half)


def select(results: Mapping[str, Any], **params: Any) -> list[Record]:
    """Returns the records of the trials that have these parameters, in the order of their seeds."""
    found = [
        record
        for record in results['trials']
        if all(record['params'].get(key) == value for key, value in params.items())
    ]
    return sorted(found, key=lambda record: record['params'].get('seed', 0))


def values(results: Mapping[str, Any], *, otherwise: float = math.nan, **params: Any) -> np.ndarray:
    """Returns the metric of the trials that have these parameters, by seed.

    `otherwise` stands for a run without a value, such as one that diverged.
    """
    records = select(results, **params)
    found = [record['value'] for record in records]
    return np.array([otherwise if value is None else value for value in found], np.float64)


def choices(results: Mapping[str, Any], name: str) -> list[Any]:
    """Returns the values of a parameter, in the order of the trials."""
    return list(dict.fromkeys(record['params'][name] for record in results['trials']))


def points(curve: Mapping[str, float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and values of a curve of a record."""
    known = [(int(step), value) for step, value in curve.items() if value is not None]
    steps, heights = zip(*known, strict=True) if known else ((), ())
    return np.array(steps, np.float64), np.array(heights, np.float64)


def reach(record: Record, target: float) -> tuple[float, float] | None:
    """Returns the step and the seconds of training at which the curve first is at `target`.

    Straight lines join the evaluations; None if the target is never reached.
    """
    steps, heights = points(record['curve'])
    below = np.flatnonzero(heights <= target)
    if not len(below):
        return None
    index = int(below[0])
    step = steps[index]
    if index:
        part = (heights[index - 1] - target) / (heights[index - 1] - heights[index])
        step = steps[index - 1] + part * (steps[index] - steps[index - 1])
    at, seconds = points(record['training_seconds'])
    return float(step), float(np.interp(step, at, seconds)) if len(at) else math.nan


def minutes(results: Mapping[str, Any]) -> float:
    """Returns the time of all trials; processes of --jobs share it."""
    return round(sum(record['seconds'] for record in results['trials']) / 60, 1)


def panels(count: int, *, width: float = 4.2, height: float = 3.4) -> tuple[Any, Sequence[Any]]:
    """Returns a figure of matplotlib and its plots, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout='constrained')
    plots = figure.subplots(1, count, squeeze=False)[0]
    for axes in plots:
        axes.grid(alpha=0.25)
        axes.spines[['top', 'right']].set_visible(False)
    return figure, plots


def save(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure as PNG."""
    with files.atomic_file(path) as file:
        figure.savefig(file, format='png', dpi=120)
