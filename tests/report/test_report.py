"""Runs with made-up metrics as groups, as a summary and as a page in Chromium."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from gpt_jax.config import RunConfig
from gpt_jax.errors import UserError
from gpt_jax.model.config import MLPKind
from gpt_jax.optim import Muon
from gpt_jax.report.charts import choose_charts
from gpt_jax.report.curve import Curve, read_curves
from gpt_jax.report.groups import describe_differences, group_runs
from gpt_jax.report.recorded_run import SECONDS, WAIT_SHARE, read_runs
from gpt_jax.report.settings import changed_settings
from gpt_jax.report.terminal import format_summary
from gpt_jax.report.warning_rules import find_warnings
from gpt_jax.report.write import render
from tests.report.recorded import COMMIT, losses, write_run

HOSTILE = '</script><img src=x onerror="document.title=1">'


def evaluated(trained):
    return {step: loss + 0.1 for step, loss in trained.items() if step % 100 == 0}


@pytest.fixture
def folders(tmp_path):
    """Three seeds of one config, and one run of another."""
    made = []
    for seed in range(3):
        trained = losses(600, seed=seed)
        samples = {200: f'early {HOSTILE}', 600: f'late of {seed}'}
        options = {'samples': samples, 'seed': seed, 'train__num_steps': 600}
        made.append(write_run(tmp_path / f'seed-{seed}', trained, evaluated(trained), **options))
    trained = {step: loss + 0.5 for step, loss in losses(400).items()} | {300: 9.0}
    knobs = {'optimizer__learning_rate': 0.01, 'train__num_steps': 600}
    made.append(write_run(tmp_path / 'high', trained, evaluated(trained), **knobs))
    return made


def page_of(folders):
    runs = read_runs(folders, keys=['--workdir'] * len(folders))
    warnings = {run.name: find_warnings(run) for run in runs}
    groups = group_runs(runs)
    return render(groups, warnings), groups, warnings


def data_of(html):
    return json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.S)[1])


def test_runs_that_differ_by_their_seed_only_are_a_group(folders):
    _, groups, _ = page_of(folders)
    assert [group.name for group in groups] == ['seed-0, seed-1, seed-2', 'high']
    assert describe_differences(groups) == ['learning_rate=0.0006', 'learning_rate=0.01']
    shared = ['config.model.vocab_size', 'config.train.num_steps']
    assert [*groups[0].settings] == shared
    assert sorted(groups[1].settings) == sorted([*shared, 'config.optimizer.learning_rate'])


def test_settings_are_told_against_the_defaults_of_the_chosen_class():
    config = RunConfig(optimizer=Muon(momentum=0.9))
    config.model.mlp = MLPKind.SWIGLU
    config.train.frozen = ('embed', 'head')
    found = {key: (each.default, each.value) for key, each in changed_settings(config).items()}
    assert found['config.optimizer'] == ('adamw', 'muon')
    assert found['config.optimizer.momentum'] == ('0.95', '0.9')
    assert found['config.train.frozen'] == ('none', 'embed, head')
    assert {key for key in found if key.startswith('config.optimizer.')} == {
        'config.optimizer.momentum'
    }
    assert any(key.startswith('config.model.mlp') for key in found)
    assert not changed_settings(RunConfig())


def test_rows_become_curves():
    rows = [
        {'step': 20, 'a': 2.0},
        {'step': 10, 'a': 1.0, 'note': 'x', 'flag': True},
        {'step': 10, 'b': None},
        {'step': 20, 'a': 3.0},
    ]
    curves = read_curves(rows)
    assert set(curves) == {'a', 'b'}
    assert curves['a'].steps.tolist() == [10, 20] and curves['a'].values.tolist() == [1.0, 3.0]
    assert math.isnan(curves['b'].values[0])


def test_a_long_curve_keeps_its_means_and_extremes():
    values = np.random.default_rng(0).normal(size=1003)
    values[500] = 50.0
    stored = Curve(np.arange(1003), values).to_json(100)
    assert len(stored['steps']) == 92 and stored['steps'][-1] == 1002  # bins of 11 rows
    assert max(stored['high']) == 50.0 and min(stored['low']) == pytest.approx(values.min(), 1e-5)
    np.testing.assert_allclose(stored['values'][3], values[33:44].mean(), rtol=1e-5)
    assert 'low' not in Curve(np.arange(100), values[:100]).to_json(100)


def test_times_and_waits_follow_from_the_throughput(folders):
    [run] = read_runs(folders[:1], keys=['--workdir'])
    step_seconds = 32 * 1024 / 1000
    np.testing.assert_allclose(run.curves[SECONDS].values[-1], 600 * step_seconds)
    np.testing.assert_allclose(run.curves[WAIT_SHARE].values, 0.01)


def test_every_metric_has_a_chart():
    charts = choose_charts(['eval/loss', 'train/loss', 'train/experts_dropped', 'train/tokens'])
    assert [(chart.title, [name for name, _ in chart.lines]) for chart in charts] == [
        ('Loss', ['train/loss', 'eval/loss']),
        ('Experts dropped (train)', ['train/experts_dropped']),
    ]


def test_the_terminal_has_a_row_for_each_run_and_the_warnings(folders):
    _, groups, warnings = page_of(folders)
    title, head, *rows = format_summary(groups, warnings).splitlines()
    assert title == '4 runs of 2 configs' and head.split()[:2] == ['run', 'step']
    assert re.fullmatch(r'  seed-1 +600 +\S+ +\S+ +\S+ +600 +1,000 +0', rows[1])
    assert re.fullmatch(r'  high +400/600 .* 1', rows[3])
    assert rows[4].startswith('high: loss spike: training loss rose from ')


def test_evaluations_have_means_and_errors(folders):
    (folders[3] / 'eval.json').write_text(
        json.dumps({'loss': 2.5, 'step': 400, 'weights': 'raw', 'source': 'train split'})
    )
    results = folders[3] / 'evaluations' / '400'
    results.mkdir(parents=True)
    metrics = {'acc': 0.25, 'acc_stderr': 0.01}
    (results / 'blimp.json').write_text(json.dumps({'task': 'blimp', 'metrics': metrics}))
    harness = {'results': {'arc': {'acc,none': 0.5, 'acc_stderr,none': 0.02, 'alias': 'arc'}}}
    (results / 'harness.json').write_text(json.dumps(harness))
    html, groups, _ = page_of(folders)
    rows = {(where, metric): cells for where, metric, *cells in data_of(html)['evaluations']}
    assert rows['train split, step 400', 'loss'] == ['–', '2.5']
    assert rows['blimp, step 400', 'acc'] == ['–', '0.25 ± 0.01']
    assert rows['arc, step 400', 'acc,none'] == ['–', '0.5 ± 0.02']
    last = [run.last('eval/loss') for run in groups[0].runs]
    expected = f'{np.mean(last):.5g} ± {np.std(last, ddof=1):.2g}'
    assert rows['validation during training, last', 'loss'][0] == expected


def test_a_page_of_many_long_runs_is_below_a_megabyte(tmp_path):
    folders = [
        write_run(tmp_path / f'{i}', losses(3000, log_every=1), seed=i, samples={9: 'x' * 99_999})
        for i in range(2)
    ]
    made = read_runs(folders, keys=['', ''])
    runs = [dataclasses.replace(made[i % 2], name=f'{i}') for i in range(40)]
    html = render(group_runs(runs), {run.name: [] for run in runs})
    assert 2e5 < len(html.encode()) < 1e6


def test_wrong_workdirs_are_one_line(tmp_path, folders):
    with pytest.raises(UserError, match='--compare=.*nothing holds no run'):
        read_runs([folders[0], tmp_path / 'nothing'], keys=['--workdir', '--compare'])
    with pytest.raises(UserError, match='seed-0 is given twice'):
        read_runs([folders[0], tmp_path / 'seed-1' / '..' / 'seed-0'], keys=['', ''])
    for damage in (lambda path: path.write_text('{"step": 1'), lambda path: path.unlink()):
        damage(folders[0] / 'metrics.jsonl')
        with pytest.raises(UserError, match='^--workdir=.*seed-0 has no metrics to report'):
            read_runs(folders[:1], keys=['--workdir'])


def test_names_are_as_long_as_they_must_be(tmp_path):
    folders = [
        write_run(tmp_path / place / 'run', losses(100), samples={}) for place in ('one', 'two')
    ]
    runs = read_runs(folders, keys=['', ''])
    assert [run.name for run in runs] == ['one/run', 'two/run']


# In Chromium


def test_the_page_of_one_run(opened, folders):
    html, _, _ = page_of(folders[3:])
    page = opened(html)
    assert page.title() == 'Report: high'
    headings = page.locator('h2').all_inner_texts()
    assert headings == ['Results', 'Warnings', 'Charts', 'Evaluations', 'Settings', 'Environment']
    assert 'of 600: not complete' in page.locator('#results').inner_text()
    shown = page.locator('#warnings').inner_text()
    assert 'loss spike' in shown
    assert f'--workdir {folders[3]} --mode replay --step ' in shown
    assert page.locator('#charts .mark').count() == 1
    titles = page.locator('#charts h3').all_inner_texts()
    assert titles[:2] == ['Loss nats per token', 'Learning rate']
    assert 'optimizer.learning_rate\t0.0006\t0.01' in page.locator('#settings').inner_text()
    environment = page.locator('#environment').inner_text()
    assert f'{COMMIT} and uncommitted changes' in environment and '8 x imagined' in environment


def test_smoothing_and_the_x_axis_change_the_lines(opened, folders):
    page = opened(page_of(folders[:1])[0])
    line = page.locator('#charts .line').first
    path = lambda: line.get_attribute('d')  # noqa: E731
    assert page.locator('#charts .raw').count()
    smoothed = path()
    page.get_by_label('Smoothing').fill('0')
    recorded = path()
    assert recorded != smoothed and not page.locator('#charts .raw').count()
    title = page.locator('#charts .axis-title').first
    for button, text in (('tokens', 'training tokens'), ('time', 'time of the training steps, h')):
        page.get_by_role('button', name=button, exact=True).click()
        assert title.text_content() == text
    page.get_by_role('group', name='x axis').get_by_role('button', name='log').click()
    assert path() != recorded


def test_groups_have_bands_and_can_be_hidden(opened, folders):
    page = opened(page_of(folders)[0])
    loss = page.locator('#charts .plot').first
    assert loss.locator('.line').count() == 2 and loss.locator('.band').count() == 1
    assert loss.locator('.legend').inner_text().split('\n') == ['seed-0, seed-1, seed-2', 'high']
    page.get_by_role('button', name='high').click()
    assert loss.locator('.line').count() == 1 and not loss.locator('.mark').count()
    assert page.locator('#results tbody tr').count() == 4
    assert page.locator('#results .plot circle:not(.ring)').count() == 4
    differ = page.locator('#settings table').first.inner_text()
    assert 'optimizer.learning_rate\t0.0006\t0.0006\t0.01' in differ


def test_samples_are_texts_of_a_run_and_a_step(opened, folders):
    page = opened(page_of(folders)[0])
    text = page.locator('.sample')
    assert text.inner_text() == 'late of 0'
    page.get_by_label('Sample').press('ArrowLeft')
    assert text.inner_text() == f'early {HOSTILE}'
    assert 'step 200' in page.locator('#samples').inner_text()
    page.locator('#samples select').select_option('seed-2')
    assert text.inner_text() == 'late of 2'
    assert page.title() == 'Report: 2 configs, 4 runs' and not page.locator('img').count()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone_scrolls_down_only_and_print_is_light(opened, folders, scheme):
    viewport = {'width': 390, 'height': 844}
    page = opened(page_of(folders)[0], viewport=viewport, color_scheme=scheme)
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    assert page.evaluate('document.documentElement.dataset.theme') == scheme
    page.emulate_media(media='print')
    page.locator('html[data-theme=light]').wait_for(state='attached')
    assert not page.get_by_label('Smoothing').is_visible()
