"""The results of a sweep: the progress table with its ETA, and results.json."""

import pathlib
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from gpt_jax import files
from gpt_jax.sweep.study import ERROR, SharedStudy, is_finished
from gpt_jax.sweep.worker import COMMAND
from gpt_jax.telemetry.report import format_columns

RESULTS = 'results.json'


def collect(shared: SharedStudy) -> list[dict[str, Any]]:
    """Returns one record per trial, by original number."""
    return [_record(shared, number, tries) for number, tries in shared.attempts().items()]


def _record(shared: SharedStudy, number: int, tries: list[FrozenTrial]) -> dict[str, Any]:
    last = tries[-1]
    done = [each for each in tries if each.duration is not None]
    interrupted = last.state is TrialState.FAIL and not is_finished(tries)
    return {
        'trial': number,
        'state': 'interrupted' if interrupted else last.state.name.lower(),
        'value': last.value if last.state is TrialState.COMPLETE else None,
        'params': last.params,
        'curve': {str(step): value for step, value in sorted(last.intermediate_values.items())},
        'attempts': len(tries),
        'seconds': sum(each.duration.total_seconds() for each in done),
        'error': last.user_attrs.get(ERROR, ''),
        'workdir': str(shared.folder / 'trials' / str(number)),
        'command': last.user_attrs.get(COMMAND, ''),
    }


def best_of(records: list[dict[str, Any]], direction: str) -> dict[str, Any] | None:
    """Returns the record of the best finished trial; None before there is one."""
    values = [record for record in records if record['value'] is not None]
    choose = max if direction == 'maximize' else min
    return choose(values, key=lambda record: record['value'], default=None)


def write(shared: SharedStudy) -> pathlib.Path:
    """Writes results.json; returns its path."""
    records, sweep = collect(shared), shared.sweep
    best = best_of(records, sweep.direction)
    path = shared.folder / RESULTS
    files.write_json(
        path,
        {
            'study': shared.study.study_name,
            'metric': sweep.metric,
            'direction': sweep.direction,
            'best': best and best['trial'],
            'trials': records,
        },
    )
    return path


def format_progress(shared: SharedStudy, *, trials: int, jobs: int) -> str:
    """Returns the table of the trials, with the time that the others need in its title."""
    records = collect(shared)
    best = best_of(records, shared.sweep.direction)
    names = list(dict.fromkeys(name for record in records for name in record['params']))
    rows = [
        [
            f'{record["trial"]}{" *" if record is best else ""}',
            record['state'],
            '' if record['value'] is None else f'{record["value"]:.4f}',
            *(_show(record['params'].get(name, '')) for name in names),
            f'{record["seconds"]:.0f} s',
        ]
        for record in records
    ]
    ended = [record for record in records if record['state'] in ('complete', 'pruned', 'fail')]
    title = f'{shared.study.study_name}: {len(ended)} of {max(trials, len(records))} trials'
    left = max(trials, len(records)) - len(ended)
    if ended and left:
        seconds = sum(record['seconds'] for record in ended) / len(ended) * left / jobs
        title += f', about {seconds / 60:.1f} min left'
    header = ['trial', 'state', shared.sweep.metric, *names, 'time']
    return format_columns(title, header, rows)


def _show(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
