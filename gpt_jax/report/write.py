"""The page of a report: its data, for the scripts in `page/`."""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import page
from gpt_jax.report.charts import choose_charts
from gpt_jax.report.groups import Group, describe_differences
from gpt_jax.report.recorded_run import SECONDS, RecordedRun
from gpt_jax.report.settings import NONE, compare
from gpt_jax.report.warning_rules import RULES, Finding

OF_BATCHES = ('loss spike', 'loss not finite', 'skipped steps')  # warnings that batches may cause
FOLDER = pathlib.Path(__file__).parent / 'page'
MAX_POINTS, LEAST_POINTS = 2000, 25  # of a curve
PAGE_POINTS = 20_000  # of all curves; a point takes about 30 bytes
SAMPLE_LETTERS, PAGE_LETTERS = 4000, 150_000


def render(groups: Sequence[Group], warnings: Mapping[str, Sequence[Finding]]) -> str:
    """Returns the page of runs, with the warnings about each run by its name."""
    runs = [run for group in groups for run in group.runs]
    charts = choose_charts(name for run in runs for name in run.curves)
    drawn = {name for chart in charts for name, _ in chart.lines} | {SECONDS}
    count = sum(name in drawn for run in runs for name in run.curves)
    points = int(np.clip(PAGE_POINTS // count, LEAST_POINTS, MAX_POINTS))
    differ, same = compare([group.settings for group in groups])
    title = groups[0].name if len(groups) == 1 else f'{len(groups)} configs, {len(runs)} runs'
    data = {
        'title': title,
        'groups': [
            {
                'name': group.name,
                'differs': differs,
                'runs': [_run(run, warnings[run.name], drawn, points) for run in group.runs],
            }
            for group, differs in zip(groups, describe_differences(groups), strict=True)
        ],
        'charts': [dataclasses.asdict(chart) for chart in charts],
        'rules': {kind: text for kind, (text, _) in RULES.items()},
        'differ': differ,
        'same': same,
        'samples': _samples(runs),
        'evaluations': _evaluations(groups),
        'environment': _environment(runs),
    }
    return page.assemble(FOLDER, data, title=f'Report: {title}')


def _run(
    run: RecordedRun, warnings: Sequence[Finding], drawn: set[str], points: int
) -> dict[str, Any]:
    best = run.best('eval/loss')
    return {
        'name': run.name,
        'seed': run.config.seed,
        'steps': run.last_step,
        'planned': run.config.train.num_steps,
        'tokens_per_step': run.config.train.batch_size * run.config.model.max_seq_len,
        'train_loss': run.last('train/loss'),
        'eval_loss': run.last('eval/loss'),
        'best': best and {'step': best[0], 'loss': best[1]},
        'speed': run.typical('train/tokens_per_second'),
        'seconds': run.last(SECONDS),
        'curves': {
            name: curve.to_json(points) for name, curve in run.curves.items() if name in drawn
        },
        'warnings': [
            dataclasses.asdict(each) | {'replay': replay_command(run, each)} for each in warnings
        ],
    }


def replay_command(run: RecordedRun, warning: Finding) -> str | None:
    """Returns the command that shows the batch with which a warning begins; None without one."""
    if warning.kind not in OF_BATCHES:
        return None
    options = ['--workdir', str(run.workdir), '--mode', 'replay', '--step', str(warning.steps[0])]
    return shlex.join(['python', '-m', 'gpt_jax.main', *options])


def _samples(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """Returns the samples of each run, at steps that are evenly chosen if there are many."""
    most = PAGE_LETTERS // (SAMPLE_LETTERS * len(runs)) + 1
    chosen = []
    for run in runs:
        if not run.samples:
            continue
        count = min(len(run.samples), most)
        places = np.linspace(len(run.samples) - 1, 0, count).round().astype(int)[::-1]
        texts = [run.samples[place] for place in places]
        cut = [
            (step, text if len(text) <= SAMPLE_LETTERS else f'{text[:SAMPLE_LETTERS]}…')
            for step, text in texts
        ]
        chosen.append({'run': run.name, 'of': len(run.samples), 'texts': cut})
    return chosen


def _evaluations(groups: Sequence[Group]) -> list[list[str]]:
    """Returns a table: what was measured, the metric, and its value for each group."""
    names = [
        ('eval', 'validation during training'),
        ('eval_ema', 'the same, averaged weights'),
    ]
    found: dict[tuple[str, str], dict[int, str]] = {}
    for index, group in enumerate(groups):
        for prefix, where in names:
            for metric in ('loss', 'perplexity', 'bits_per_byte', 'accuracy'):
                values = [run.last(f'{prefix}/{metric}') for run in group.runs]
                _add(found, (f'{where}, last', metric), index, values, [])
            lowest = [run.best(f'{prefix}/loss') for run in group.runs]
            values = [each[1] for each in lowest if each]
            _add(found, (f'{where}, lowest', 'loss'), index, values, [])
        stored: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
        for run in group.runs:
            for where, metric, value, error in run.evaluations:
                stored.setdefault((where, metric), []).append((value, error))
        for key, pairs in stored.items():
            _add(found, key, index, [value for value, _ in pairs], [error for _, error in pairs])
    rows = [
        [*key, *(cells.get(index, NONE) for index in range(len(groups)))]
        for key, cells in found.items()
    ]
    return [[*row[:1], row[1].replace('_', ' '), *row[2:]] for row in rows]


def _add(
    found: dict[tuple[str, str], dict[int, str]],
    key: tuple[str, str],
    index: int,
    values: Sequence[float | None],
    errors: Sequence[float | None],
) -> None:
    """Adds the mean of values, with the standard deviation of runs, or else the error of one."""
    known = [value for value in values if value is not None]
    if not known:
        return
    text = f'{np.mean(known):.5g}'
    if len(known) > 1:
        text += f' ± {np.std(known, ddof=1):.2g}'
    elif errors and errors[0] is not None:
        text += f' ± {errors[0]:.2g}'
    found.setdefault(key, {})[index] = text


def _environment(runs: Sequence[RecordedRun]) -> dict[str, list[list[str]]]:
    """Returns the facts that all runs share, and a table of the others with a row for each run."""
    rows = []
    for run in runs:
        commit = run.provenance.get('git_commit', '')
        origin = run.provenance.get('init_from') or {}
        facts = {
            'workdir': str(run.workdir),
            'commit': commit.rstrip('+') + (' and uncommitted changes' if '+' in commit else ''),
            **{name: str(value) for name, value in run.provenance.get('environment', {}).items()},
            'weights from': f'{origin["workdir"]}, step {origin["step"]}' if origin else '',
            'command': ' '.join(map(str, run.provenance.get('command', ()))),
        }
        rows.append({name: value for name, value in facts.items() if value})
    names = dict.fromkeys(name for facts in rows for name in facts)
    values = {name: [facts.get(name, NONE) for facts in rows] for name in names}
    shared = [[name, each[0]] for name, each in values.items() if len(set(each)) == 1]
    own = {name: each for name, each in values.items() if len(set(each)) > 1}
    table = [list(row) for row in zip([run.name for run in runs], *own.values(), strict=True)]
    return {'shared': shared, 'own': [['Run', *own], *table] if own else []}
