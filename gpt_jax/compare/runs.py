"""The curves of finished runs, read from their workdirs."""

import dataclasses
import enum
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt_jax import run
from gpt_jax.compare.sides import Plan
from gpt_jax.config import RunConfig
from gpt_jax.config_tree import differences, flatten, to_json
from gpt_jax.errors import UserError
from gpt_jax.report.curve import read_curves, training_time
from gpt_jax.telemetry.metrics import read_rows
from gpt_jax.train.run_folder import DIVERGED

Rows = list[dict[str, Any]]


class State(enum.Enum):
    """The states of a run."""

    UNFINISHED = enum.auto()
    FINISHED = enum.auto()
    DIVERGED = enum.auto()


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of metrics.jsonl."""

    name: str
    maximize: bool = False  # a higher value is better

    def cost(self, values: Any) -> Any:
        """Returns numbers of which the lower is better."""
        return -values if self.maximize else values


@dataclasses.dataclass(frozen=True)
class Curve:
    """The values of a metric during one or, averaged, several runs."""

    steps: np.ndarray
    values: np.ndarray
    seconds: np.ndarray  # of training up to each step, evaluations and compilation excluded

    def equals(self, other: 'Curve') -> bool:
        """Returns whether all values are equal bit for bit."""
        return np.array_equal(self.steps, other.steps) and np.array_equal(
            self.values, other.values, equal_nan=True
        )

    def reach(self, target: float, metric: Metric) -> tuple[float, float]:
        """Returns the steps and seconds at which the metric first is `target`; NaN if never.

        Between two measurements it is taken to be a straight line.
        """
        costs = metric.cost(self.values) - metric.cost(target)
        reached = np.flatnonzero(costs <= 0)
        if not len(reached):
            return math.nan, math.nan
        index = int(reached[0])
        part = 1.0
        if index and np.isfinite(costs[index - 1]):
            part = float(costs[index - 1] / (costs[index - 1] - costs[index]))
        before = max(index - 1, 0)
        steps, seconds = (
            float(x[before] + part * (x[index] - x[before])) for x in (self.steps, self.seconds)
        )
        return steps, seconds


@dataclasses.dataclass(frozen=True)
class Side:
    """The runs of one config; None for one that diverged."""

    name: str
    folder: pathlib.Path
    workdirs: list[pathlib.Path]
    curves: dict[int, Curve | None]  # by seed, in order

    @property
    def diverged(self) -> list[int]:
        """The seeds of the runs without a finite last value."""
        return [seed for seed, curve in self.curves.items() if curve is None]

    @property
    def finished(self) -> list[Curve]:
        """The curves of the others."""
        return [curve for curve in self.curves.values() if curve is not None]

    def mean_curve(self) -> Curve:
        """Returns the means over the seeds that did not diverge; there must be one."""
        values = np.mean([each.values for each in self.finished], axis=0)
        seconds = np.mean([each.seconds for each in self.finished], axis=0)
        return Curve(self.finished[0].steps, values, seconds)


def state_of(workdir: pathlib.Path) -> State:
    """Returns how far the run in `workdir` came."""
    try:
        rows = read_rows(workdir)
    except FileNotFoundError:
        return State.UNFINISHED
    return _state(run.read_config(workdir), rows)


def _state(config: RunConfig, rows: Rows) -> State:
    if any(DIVERGED in row for row in rows):
        return State.DIVERGED
    done = any(row['step'] == config.train.num_steps for row in rows)
    evaluated = {row['step'] for row in rows if 'eval/loss' in row}
    if done and (config.train.num_steps in evaluated or not config.eval.at_end):
        return State.FINISHED
    return State.UNFINISHED


def read_side(plan: Plan, metric: Metric) -> Side:
    """Reads the runs of a side.

    Raises:
        UserError: a run is not finished or has no such metric, or configs differ in more than the
            seed.
    """
    curves, first = {}, None
    for planned in plan.runs:
        config = run.read_config(planned.workdir)
        values = to_json(config) | {'seed': None}
        first = first or values
        if changed := differences(first, values):
            raise UserError(
                f'the runs in {plan.folder} differ in more than config.seed ({changed[0]}); '
                'keep one folder per config'
            )
        curves[planned.seed] = _read_curve(planned.workdir, config, metric)
    if len({tuple(curve.steps) for curve in curves.values() if curve}) > 1:
        raise UserError(
            f'{plan.folder} has runs with {metric.name} at different steps; repeat them'
        )
    return Side(plan.name, plan.folder, [each.workdir for each in plan.runs], curves)


def _read_curve(workdir: pathlib.Path, config: RunConfig, metric: Metric) -> Curve | None:
    """Reads the curve of a run; None if it diverged. Raises UserError if it is not finished."""
    try:
        rows = read_rows(workdir)
    except FileNotFoundError as error:
        raise UserError(
            f'{workdir} has no metrics.jsonl; let config.train.sinks name jsonl'
        ) from error
    state = _state(config, rows)
    if state is State.DIVERGED:
        return None
    if state is State.UNFINISHED:
        raise UserError(
            f'{workdir} is not finished; finish it with python -m gpt_jax.main --workdir {workdir}'
        )
    points = {row['step']: row[metric.name] for row in rows if metric.name in row}
    last = config.train.num_steps
    if last not in points:
        known = sorted({name for row in rows if row['step'] == last for name in row} - {'step'})
        raise UserError(
            f'{workdir} has no {metric.name} at its last step {last}; choose --metric from '
            f'{", ".join(known)}'
        )
    if points[last] is None:
        return None
    steps = np.array(sorted(points))
    values = np.array([points[step] for step in steps], np.float64)  # None becomes NaN
    return Curve(steps, values, _seconds(rows, steps, config))


def _seconds(rows: Rows, steps: np.ndarray, config: RunConfig) -> np.ndarray:
    """Returns the training time at each step; NaN if the rows have no speed."""
    tokens_per_step = config.train.batch_size * config.model.max_seq_len
    took = training_time(read_curves(rows), tokens_per_step=tokens_per_step)
    if took is None:
        return np.full(len(steps), math.nan)
    return np.interp(steps, [0, *took.steps], [0, *took.values])


def check_comparable(configs: Mapping[str, RunConfig]) -> None:
    """Raises UserError unless the metrics of all sides are of the same validation texts."""
    (first, baseline), *others = ((name, _validation(each)) for name, each in configs.items())
    for name, validation in others:
        for key in sorted(baseline.keys() | validation.keys()):
            if baseline.get(key) != validation.get(key):
                raise UserError(
                    f'{first} and {name} have different {key} ({baseline.get(key)!r} and '
                    f'{validation.get(key)!r}), so their validation losses are not comparable; '
                    'use one value'
                )


def _validation(config: RunConfig) -> dict[str, Any]:
    """Returns the knobs that decide what is validated on."""
    chosen = ('config.tokenizer.', 'config.data.', 'config.model.max_seq_len')
    chosen += ('config.eval.batches',) + ('config.eval.batch_size',) * bool(config.eval.batches)
    flat = flatten(to_json(config))
    return {key: value for key, value in flat.items() if key.startswith(chosen)}


def check_seeds(baseline: Side, other: Side) -> None:
    """Raises UserError if the runs can be paired neither by seed nor, sharing none, at will."""
    ours, theirs = set(baseline.curves), set(other.curves)
    if ours != theirs and ours & theirs:
        raise UserError(
            f'{baseline.name} has the seeds {sorted(ours)}, {other.name} has {sorted(theirs)}; '
            'pairs need equal seeds, or none in common'
        )
