"""The results of a sweep: results.json, a page, a picture, and the table with the time left."""

import datetime
import functools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from gpt_jax import files, page
from gpt_jax import run as runs
from gpt_jax.errors import UserError
from gpt_jax.parallel import consistency
from gpt_jax.report.curve import Curve, read_curves, training_time
from gpt_jax.sweep.attempts import REASON, Attempts, State
from gpt_jax.sweep.picture import draw
from gpt_jax.sweep.study import SharedStudy
from gpt_jax.sweep.worker import COMMAND, MACHINE
from gpt_jax.telemetry.metrics import read_rows
from gpt_jax.telemetry.report import format_columns, format_table

RESULTS, PAGE, PICTURE = 'results.json', 'results.html', 'results.png'
PAGE_FOLDER = pathlib.Path(__file__).parent / 'page'
TABLE_ROWS = 12  # of the progress table
LEAST_TRIALS = 4  # complete ones, from which on importance is computed
DECADES = 30  # largest by smallest choice, from which on an axis is logarithmic


def write(shared: SharedStudy, results: Mapping[str, Any]) -> list[pathlib.Path]:
    """Writes what `collect` returned, without the picture; returns the paths."""
    paths = [shared.folder / RESULTS, shared.folder / PAGE]
    files.write_json(paths[0], results)
    title = f'Sweep: {results["study"]}'
    page.save(page.assemble(PAGE_FOLDER, results, title=title), paths[1])
    return paths


def write_all(shared: SharedStudy) -> list[pathlib.Path]:
    """Writes the results with the picture, which takes about a second; returns the paths."""
    results, picture = collect(shared), shared.folder / PICTURE
    paths = write(shared, results)
    return [*paths, picture] if draw(results, picture) else paths


def answer(shared: SharedStudy, *, trials: int) -> Mapping[str, Any] | None:
    """Adds to results.json what they say, by `sweep.answer`; returns it.

    Returns None if the sweep file does not say how, or trials are missing.

    Raises:
        UserError: `sweep.answer` failed.
    """
    if shared.sweep.answer is None:
        return None
    results = collect(shared)
    if sum(record['state'].is_finished for record in results['trials']) < trials:
        return None
    try:
        results['answer'] = dict(shared.sweep.answer(results, shared.folder))
    except Exception as error:
        raise UserError(f'sweep.answer: {type(error).__name__}: {error}') from error
    files.write_json(shared.folder / RESULTS, results)
    return results['answer']


def format_answer(answer: Mapping[str, Any]) -> str:
    """Returns a table of an answer."""
    return format_table('answer', {key: _show(value) for key, value in answer.items()})


def collect(shared: SharedStudy) -> dict[str, Any]:
    """Returns the results: of the sweep, and a record per trial by original number."""
    sweep = shared.sweep
    attempts = shared.attempts()
    records = [_record(shared, each) for each in attempts]
    best = best_of(records, sweep.direction)
    return {
        'study': sweep.name,
        'config': sweep.config,
        'metric': sweep.metric,
        'direction': sweep.direction,
        'best': best and best['trial'],
        'knobs': _knobs(each.last for each in attempts),
        'importance': _importance(shared.study),
        **_facts(),
        'date': _to_text(datetime.datetime.now()),
        'trials': records,
    }


@functools.cache
def _facts() -> dict[str, Any]:
    """Returns the code of this process."""
    versions = {'optuna': optuna.__version__, **consistency.code_facts()}
    return {'git_commit': runs.git_commit(), 'versions': versions}


def _record(shared: SharedStudy, attempts: Attempts) -> dict[str, Any]:
    last, number = attempts.last, attempts.number
    attributes, workdir = last.user_attrs, shared.workdir(number)
    provenance = workdir / runs.PROVENANCE
    stored = files.read_json(provenance) if provenance.is_file() else {}
    read = _read_finished if attempts.state.is_finished else read_columns
    return {
        'trial': number,
        'state': attempts.state,
        'value': last.value if attempts.state is State.COMPLETE else None,
        'params': last.params,
        'curve': {str(step): value for step, value in sorted(last.intermediate_values.items())},
        **read(workdir, tuple(shared.sweep.columns)),
        'metrics': str((workdir / 'metrics.jsonl').relative_to(shared.folder)),
        'attempts': len(attempts.tries),
        'seconds': round(sum(map(_seconds, attempts.tries)), 3),
        'reason': attributes.get(REASON, ''),
        'command': attributes.get(COMMAND, ''),
        'machine': attributes.get(MACHINE, ''),
        'date': last.datetime_start and _to_text(last.datetime_start),
        'data': stored.get('data', ''),
        'environment': stored.get('environment', {}),
    }


def read_columns(workdir: pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
    """Returns curves of a run: the metrics of these names, and the seconds of training so far."""
    curves = read_curves(read_rows(workdir)) if (workdir / 'metrics.jsonl').is_file() else {}
    return {
        'columns': {name: _points(curves.get(name)) for name in names},
        'training_seconds': _points(_training_time(curves)),
    }


# The results are collected after each trial; the rows of a finished one do not change.
_read_finished = functools.cache(read_columns)


def _training_time(curves: Mapping[str, Curve]) -> Curve | None:
    tokens = curves.get('train/tokens')
    if tokens is None:
        return None
    return training_time(curves, tokens_per_step=int(tokens.values[-1] // tokens.steps[-1]))


def _points(curve: Curve | None) -> dict[str, float | None]:
    """Returns the values of a curve by step; None for those that are not finite."""
    if curve is None:
        return {}
    return {
        str(step): value if math.isfinite(value) else None
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
    }


def _knobs(trials: Iterable[FrozenTrial]) -> dict[str, dict[str, Any]]:
    """Returns for each parameter its choices, or None, and whether it is logarithmic.

    Choices that are numbers are an axis like a range; it is logarithmic where they span decades.
    """
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            choices = getattr(distribution, 'choices', None)
            log = getattr(distribution, 'log', False)
            if choices and all(type(each) in (int, float) for each in choices):
                log = min(choices) > 0 and max(choices) >= DECADES * min(choices)
                choices = None
            found.setdefault(name, {'choices': choices and list(choices), 'log': log})
    return found


def _seconds(trial: FrozenTrial) -> float:
    """Returns the time that an attempt took; 0 until it ends."""
    return trial.duration.total_seconds() if trial.duration else 0.0


def _to_text(moment: datetime.datetime) -> str:
    """Returns a moment of this machine's time zone, as Optuna stores them, in ISO 8601."""
    return moment.astimezone().isoformat(timespec='seconds')


def _importance(study: optuna.Study) -> dict[str, float]:
    """Returns the share of each parameter in what makes a trial good; {} if it is not known."""
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < LEAST_TRIALS:
        return {}
    return optuna.importance.get_param_importances(study)


def best_of(records: Sequence[dict[str, Any]], direction: str) -> dict[str, Any] | None:
    """Returns the record of the best complete trial; None before there is one."""
    values = [record for record in records if record['value'] is not None]
    choose = max if direction == 'maximize' else min
    return choose(values, key=lambda record: record['value'], default=None)


def format_progress(found: Mapping[str, Any], *, trials: int) -> str:
    """Returns a table of the best trials and of those that run, with the time left in its title."""
    records, sign = found['trials'], -1 if found['direction'] == 'maximize' else 1
    finished = [record for record in records if record['state'].is_finished]
    running = sum(record['state'] is State.RUNNING for record in records)
    trials = max(trials, len(records))
    counts = [
        f'{count} {state}'
        for state in State
        if (count := sum(record['state'] is state for record in records))
    ]
    title = f'{found["study"]}: {len(finished)} of {trials} trials ({", ".join(counts) or "none"})'
    if finished and len(finished) < trials:
        seconds = sum(record['seconds'] for record in finished) / len(finished)
        left = seconds * (trials - len(finished)) / max(running, 1)
        title += f', about {max(left / 60, 0.1):.1f} min left'
    by_value = sorted(
        records,
        key=lambda record: (
            record['state'].is_finished,
            record['value'] is None,
            sign * (record['value'] or 0),
            record['trial'],
        ),
    )
    names = list(dict.fromkeys(name for record in records for name in record['params']))
    rows = [
        [
            f'{record["trial"]}{" *" if record["trial"] == found["best"] else ""}',
            str(record['state']),
            '' if record['value'] is None else f'{record["value"]:.4f}',
            *(_show(record['params'].get(name, '')) for name in names),
            f'{record["seconds"]:.0f} s',
        ]
        for record in by_value[:TABLE_ROWS]
    ]
    table = format_columns(title, ['trial', 'state', found['metric'], *names, 'time'], rows)
    hidden = len(records) - len(rows)
    return f'{table}\n  and {hidden} more in {RESULTS}' if hidden else table


def _show(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
