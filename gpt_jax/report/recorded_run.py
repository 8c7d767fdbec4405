"""A run as its workdir records it: config, provenance, curves, samples and evaluations."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.config import RunConfig
from gpt_jax.errors import UserError
from gpt_jax.report.curve import Curve, read_curves, training_time
from gpt_jax.telemetry.metrics import read_rows

WAIT_SHARE = 'train/data_wait_share'  # derived here
SECONDS = 'train/seconds'  # derived here: the time of all steps so far


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A run; `name` is the shortest end of its path that the other runs of a report lack."""

    name: str
    workdir: pathlib.Path
    config: RunConfig  # with every value
    draft: RunConfig  # with values that follow from others reset to 0
    provenance: Mapping[str, Any]
    curves: Mapping[str, Curve]
    samples: Sequence[tuple[int, str]]  # by step
    evaluations: Sequence[tuple[str, str, float, float | None]]  # where, metric, value, error

    @property
    def last_step(self) -> int:
        """The last step with a metric."""
        return max(int(curve.steps[-1]) for curve in self.curves.values())

    def last(self, name: str) -> float | None:
        """Returns the last finite value of a metric, or None."""
        curve = self.curves.get(name)
        values = () if curve is None else curve.finite().values
        return float(values[-1]) if len(values) else None

    def best(self, name: str) -> tuple[int, float] | None:
        """Returns the step and the lowest value of a metric, or None."""
        curve = self.curves.get(name)
        if curve is None or not len(curve := curve.finite()):
            return None
        lowest = int(np.argmin(curve.values))
        return int(curve.steps[lowest]), float(curve.values[lowest])

    def typical(self, name: str) -> float | None:
        """Returns the median of a metric over the second half of its rows, or None."""
        curve = self.curves.get(name)
        if curve is None or not len(curve := curve.finite()):
            return None
        return float(np.median(curve.values[len(curve) // 2 :]))


def read_runs(workdirs: Sequence[pathlib.Path], *, keys: Sequence[str]) -> list[RecordedRun]:
    """Reads runs; `keys` name their flags in errors.

    Raises:
        UserError: a folder is no run, or has no metrics.
    """
    names = _short_names(workdirs)
    return [
        _read_run(workdir, name=name, key=key)
        for workdir, name, key in zip(workdirs, names, keys, strict=True)
    ]


def _read_run(workdir: pathlib.Path, *, name: str, key: str) -> RecordedRun:
    config = runs.read_config(workdir, key=key)
    try:
        rows = read_rows(workdir)
    except FileNotFoundError:
        rows = []
    curves = read_curves(rows)
    if not curves:
        raise UserError(
            f'{key}={workdir} has no metrics to report (metrics.jsonl is missing or has no rows); '
            f"train it with 'jsonl' in config.train.sinks"
        )
    provenance = workdir / runs.PROVENANCE
    return RecordedRun(
        name=name,
        workdir=workdir,
        config=config,
        draft=runs.read_draft(workdir),
        provenance=files.read_json(provenance) if provenance.is_file() else {},
        curves=curves | _derived(curves, config.train.batch_size * config.model.max_seq_len),
        samples=_read_samples(workdir),
        evaluations=_read_evaluations(workdir),
    )


def _derived(curves: Mapping[str, Curve], tokens_per_step: int) -> dict[str, Curve]:
    """Returns the share of the time that steps waited for data, and the time of the steps."""
    took = training_time(curves, tokens_per_step=tokens_per_step)
    if took is None:
        return {}
    derived = {SECONDS: took}
    wait = curves.get('train/data_wait_seconds')
    if wait is not None and np.array_equal(wait.steps, took.steps):
        step_seconds = np.diff(took.values, prepend=0) / np.diff(took.steps, prepend=0)
        derived[WAIT_SHARE] = Curve(wait.steps, np.minimum(wait.values / step_seconds, 1.0))
    return derived


def _read_samples(workdir: pathlib.Path) -> list[tuple[int, str]]:
    folder = workdir / 'samples'
    if not folder.is_dir():
        return []
    found = {path.name: path for path in folder.iterdir()}
    steps = sorted(int(name[:-4]) for name in found if re.fullmatch(r'\d+\.txt', name))
    return [(step, files.read_text(found[f'{step}.txt']).rstrip('\n')) for step in steps]


def _read_evaluations(workdir: pathlib.Path) -> list[tuple[str, str, float, float | None]]:
    """Returns the results of `--mode evaluate`: of a split or a text, and of tasks."""
    found = []
    path = workdir / 'eval.json'
    if path.is_file():
        stored = files.read_json(path)
        where = f'{stored.get("source", "text")}, step {stored.get("step", "?")}'
        where += ', averaged weights' if stored.get('weights') == 'ema' else ''
        found += [
            (where, name, value, None)
            for name, value in stored.items()
            if name != 'step' and isinstance(value, int | float)
        ]
    folder = workdir / 'evaluations'
    if not folder.is_dir():
        return found
    for step in sorted(folder.iterdir(), key=lambda each: each.name):
        for path in sorted(step.glob('*.json')) if step.is_dir() else ():
            found += _read_task(path, step.name)
    return found


def _read_task(path: pathlib.Path, step: str) -> list[tuple[str, str, float, float | None]]:
    """Returns the metrics of a file of `evaluations/`, without those of groups of rows.

    They are of one task, or of tasks of lm-evaluation-harness, which names a metric `acc,none`.
    """
    stored = files.read_json(path)
    if not isinstance(stored, dict):
        return []
    tasks = {stored.get('task', path.stem): stored.get('metrics')} | stored.get('results', {})
    return [
        (f'{task}, step {step}', name, value, values.get(f'{metric}_stderr{comma}{way}'))
        for task, values in tasks.items()
        if isinstance(values, dict)
        for name, value in values.items()
        for metric, comma, way in [name.partition(',')]
        if isinstance(value, float) and not metric.endswith('_stderr')
    ]


def _short_names(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """Returns the shortest ends of paths by which all differ."""
    parts = [
        (str(path) if object_store.is_remote(path) else str(path.resolve())).split('/')
        for path in workdirs
    ]
    for length in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(path for i, path in enumerate(workdirs) if parts[i] in parts[:i])
    raise UserError(f'{twice} is given twice; name each run once')
