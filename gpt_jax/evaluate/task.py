"""Tasks, which make questions from rows and a result from the scores of these questions."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.evaluate.scoring import Request, Score

Row = Mapping[str, Any]


class Question(NamedTuple):
    """A row of a task as requests to score."""

    requests: tuple[Request, ...]
    choices: tuple[str, ...] = ()  # the answers; `acc_norm` divides by their lengths
    gold: int = 0  # index of the right one
    groups: Mapping[str, str] = {}  # kind of group: name; the smallest group first


class Metric(NamedTuple):
    """A number and its standard error, which is nan if unknown."""

    value: float
    stderr: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The metrics of a task, over all rows and by group."""

    rows: int
    metrics: dict[str, Metric]
    tables: dict[str, dict[str, dict[str, Metric]]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns values by name, with standard errors as `<name>_stderr`; nan becomes null."""
        return {
            'rows': self.rows,
            'metrics': flatten(self.metrics),
            'tables': {
                kind: {name: flatten(metrics) for name, metrics in table.items()}
                for kind, table in self.tables.items()
            },
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> 'Result':
        """Returns the result that `to_json` was called on."""
        return cls(
            rows=stored['rows'],
            metrics=_unflatten(stored['metrics']),
            tables={
                kind: {name: _unflatten(metrics) for name, metrics in table.items()}
                for kind, table in stored['tables'].items()
            },
        )


class Hub(NamedTuple):
    """The location of a task's rows on the Hugging Face hub."""

    path: str
    configuration: str | None  # '*': all configurations together
    split: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task; `tasks.TASKS` lists them."""

    question: Callable[[Row], Question]
    summarize: Callable[[Sequence[Question], Sequence[Sequence[Score]]], Result]
    fields: str  # the fields of a row, for error messages
    hub: Hub | None = None
    in_files: bool = False  # its rows may be spread over several files
    texts: bool = False  # a .txt file is one row, with the field `text`


def flatten(metrics: Mapping[str, Metric]) -> dict[str, float | None]:
    """Returns metrics as `{'acc': 0.5, 'acc_stderr': 0.1}`; nan and inf become None."""
    flat = {}
    for name, (value, stderr) in metrics.items():
        flat |= {name: value, f'{name}_stderr': stderr}
    return {name: value if math.isfinite(value) else None for name, value in flat.items()}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Metric:
    """Returns sum over sum, with the standard error of a ratio of means of independent samples.

    Cochran 1977, Sampling Techniques, 2.11 and 6.3. With denominators of 1 it is the mean, and
    the sample standard deviation divided by the square root of the count.
    """
    n, d = np.asarray(numerators, float), np.asarray(denominators, float)
    value = float(n.sum() / d.sum())
    if len(n) < 2:
        return Metric(value, math.nan)
    squares = float(np.square(n - value * d).sum())
    return Metric(value, math.sqrt(len(n) / (len(n) - 1) * squares) / float(d.sum()))


def mean(values: Sequence[float]) -> Metric:
    """Returns the mean of independent samples."""
    return ratio(values, np.ones(len(values)))


def exponential(metric: Metric) -> Metric:
    """Returns the exponential, with its error to first order; inf if a float overflows."""
    value = math.exp(metric.value) if metric.value < 700 else math.inf
    return Metric(value, value * metric.stderr)


def _unflatten(flat: Mapping[str, float | None]) -> dict[str, Metric]:
    numbers = {name: math.nan if value is None else value for name, value in flat.items()}
    names = [name for name in numbers if not name.endswith('_stderr')]
    return {name: Metric(numbers[name], numbers[f'{name}_stderr']) for name in names}
