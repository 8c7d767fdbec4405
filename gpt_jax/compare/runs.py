"""Finished runs of one config with several seeds, read from their workdirs."""

import dataclasses
import math
import os
import pathlib
from typing import Any

import numpy as np

from gpt_jax import run
from gpt_jax.config_tree import differences, flatten, to_json
from gpt_jax.errors import UserError
from gpt_jax.telemetry.metrics import read_rows

METRIC = 'eval/loss'


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The curve of a run that reached its last step."""

    config: dict[str, Any]  # as JSON
    steps: np.ndarray  # of the evaluations
    losses: np.ndarray
    seconds: np.ndarray  # of training up to each evaluation, evaluations excluded

    def same_losses(self, other: 'FinishedRun') -> bool:
        """Returns whether all losses are equal bit for bit."""
        return np.array_equal(self.steps, other.steps) and np.array_equal(self.losses, other.losses)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Runs that differ in their seed only."""

    name: str
    runs: dict[int, FinishedRun]  # by seed, in order

    def mean_curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns steps, and the means over the seeds of the losses and of the seconds."""
        runs = [*self.runs.values()]
        losses = np.mean([each.losses for each in runs], axis=0)
        return runs[0].steps, losses, np.mean([each.seconds for each in runs], axis=0)


def read_candidate(folder: pathlib.Path) -> Candidate:
    """Reads the run in `folder`, or the runs in its subfolders.

    Raises:
        UserError: there is no run, a run is not finished or diverged, two have one seed, or their
            configs differ in more than the seed.
    """
    folders = [folder]
    if not (folder / run.CONFIG).is_file():
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        folders = [folder / name for name in names if (folder / name / run.CONFIG).is_file()]
    if not folders:
        raise UserError(f'{folder} has no runs; name a workdir or a folder of workdirs')
    runs, first = {}, None
    for path in folders:
        finished = read_run(path)
        seed = finished.config.pop('seed')
        if seed in runs:
            raise UserError(f'{folder} has two runs with config.seed={seed}; move one elsewhere')
        first = first or finished
        if changed := differences(first.config, finished.config):
            raise UserError(
                f'the runs in {folder} differ in more than config.seed ({changed[0]}); '
                'keep one folder per config'
            )
        runs[seed] = finished
    return Candidate(folder.name, dict(sorted(runs.items())))


def read_run(workdir: pathlib.Path) -> FinishedRun:
    """Reads a finished run.

    Raises:
        UserError: the run is not finished, or its last validation loss is not finite.
    """
    config = run.read_config(workdir)
    try:
        rows = read_rows(workdir)
    except FileNotFoundError as error:
        raise UserError(
            f'{workdir} has no metrics.jsonl; add jsonl to the metrics sinks'
        ) from error
    evaluations = {row['step']: row[METRIC] for row in rows if METRIC in row}
    last = config.train.num_steps
    if last not in evaluations:
        raise UserError(
            f'{workdir} has no {METRIC} of its last step {last}; finish it with '
            f'python -m gpt_jax.main --workdir {workdir}'
        )
    if evaluations[last] is None:
        raise UserError(f'{workdir} diverged: its last {METRIC} is not finite; leave it out')
    steps = np.array(sorted(evaluations))
    losses = np.array([evaluations[step] for step in steps], np.float64)  # None becomes NaN
    return FinishedRun(to_json(config), steps, losses, _seconds(rows, steps))


def _seconds(rows: list[dict[str, Any]], steps: np.ndarray) -> np.ndarray:
    """Returns the training time at each step, from the speeds of the rows."""
    times, total, before = {0: 0.0}, 0.0, 0.0
    for row in rows:
        if speed := row.get('train/tokens_per_second'):
            total += (row['train/tokens'] - before) / speed
            before = row['train/tokens']
            times[row['step']] = total
    if len(times) == 1:
        return np.full(len(steps), math.nan)
    return np.interp(steps, [*times], [*times.values()])


def check_comparable(baseline: Candidate, other: Candidate) -> None:
    """Raises UserError if seeds differ, or the losses are not of the same validation texts."""
    if odd := sorted(baseline.runs.keys() ^ other.runs.keys()):
        lacks = other if odd[0] in baseline.runs else baseline
        raise UserError(
            f'{lacks.name} has no run with config.seed={odd[0]}; train one, or leave this seed out '
            'of both'
        )
    seed = next(iter(baseline.runs))
    one, two = (flatten(each.runs[seed].config) for each in (baseline, other))
    for key in sorted(one.keys() | two.keys()):
        same_data = key.startswith(('config.tokenizer.', 'config.data.'))
        same_batches = key in ('config.eval.batches', 'config.model.max_seq_len')
        if (same_data or same_batches) and one.get(key) != two.get(key):
            raise UserError(
                f'{baseline.name} and {other.name} have different {key}, so their validation '
                'losses are not comparable; use one value'
            )
    steps = {tuple(each.steps) for one in (baseline, other) for each in one.runs.values()}
    if len(steps) > 1:
        raise UserError(
            f'{baseline.name} and {other.name} were evaluated at different steps; use one '
            'config.eval.every and one config.train.num_steps'
        )
