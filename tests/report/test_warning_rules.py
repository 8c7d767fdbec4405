"""Each rule on curves that break it and on curves that do not."""

import math
import pathlib

import numpy as np
import pytest

from gpt_jax.report.curve import Curve
from gpt_jax.report.recorded_run import read_runs
from gpt_jax.report.warning_rules import RULES, WAIT_LIMIT, find_warnings, spikes
from tests.report.recorded import losses, write_run


def warnings(folder, *args, **options):
    [run] = read_runs([write_run(folder, *args, **options)], keys=['--workdir'])
    return {each.kind: each for each in find_warnings(run)}


def curve(values):
    return Curve(np.arange(1, len(values) + 1), np.array(values))


def test_a_healthy_run_has_no_warnings(tmp_path):
    trained = losses(2000)
    evaluated = {step: trained[step] + 0.1 for step in range(200, 2001, 200)}
    assert not warnings(tmp_path / 'run', trained, evaluated, train__num_steps=2000)


def test_a_spike_has_its_steps_and_its_height(tmp_path):
    trained = losses(2000)
    trained |= {1000: 3.0, 1010: 3.4, 1020: 2.9}
    spike = warnings(tmp_path / 'run', trained, train__num_steps=2000)['loss spike']
    assert spike.steps == (1000, 1020)
    assert 'to 3.4 at steps 1,000 to 1,020' in spike.text and 'stayed' not in spike.text


def test_a_divergence_is_a_spike_that_stays(tmp_path):
    trained = losses(2000)
    trained |= {step: 6.0 for step in range(1500, 2001, 10)}  # more rows than the window has
    spike = warnings(tmp_path / 'run', trained, train__num_steps=2000)['loss spike']
    assert spike.steps == (1500, 2000) and spike.text.endswith('and stayed high')


def test_spikes_are_told_from_noise():
    noise = np.random.default_rng(0).normal(size=5000)
    assert spikes(curve(3 + 0.2 * noise)) == []  # the largest of 5,000 are 3.5 deviations away
    assert spikes(curve(3 + 1e-6 * noise)) == []
    jump = 3 + 0.02 * noise
    jump[3000] = 3.14  # more than 6 deviations, less than 5%
    assert spikes(curve(jump)) == []
    jump[3000] = 3.2
    assert spikes(curve(jump)) == [(3001, 3001, True)]
    jump[3000] = 2.0  # downwards
    assert spikes(curve(jump)) == []


def test_no_spike_is_found_before_there_is_a_median():
    assert spikes(curve([3.0] * 9 + [9.0])) == []
    assert spikes(curve([3.0] * 10 + [9.0, 3.0])) == [(11, 11, True)]


def test_losses_that_are_not_finite_are_counted(tmp_path):
    trained = losses(500)
    trained |= {300: math.nan, 310: math.inf, 400: math.nan}
    found = warnings(tmp_path / 'run', trained, train__num_steps=500)
    assert list(found) == ['loss not finite']
    assert '3 of 50 rows, steps 300 to 400' in found['loss not finite'].text


def test_skipped_steps(tmp_path):
    counts = {step: float((step >= 200) + (step >= 300)) for step in losses(500)}
    rows = [(step, {'train/skipped_steps': count}) for step, count in counts.items()]
    found = warnings(tmp_path / 'run', losses(500), rows=rows, train__num_steps=500)
    assert (
        found['skipped steps'].text
        == '2 steps were skipped; their counter rose at steps 200 to 300'
    )


@pytest.mark.parametrize('share', [WAIT_LIMIT * 0.9, WAIT_LIMIT * 1.1])
def test_slow_input(tmp_path, share):
    step_seconds = 32 * 1024 / 1000
    rows = [(step, {'train/data_wait_seconds': share * step_seconds}) for step in losses(500)]
    found = warnings(tmp_path / 'run', losses(500), rows=rows, train__num_steps=500)
    assert ('slow input' in found) == (share > WAIT_LIMIT)


@pytest.mark.parametrize('late, warned', [(750.0, False), (650.0, True)])
def test_slowing_down(tmp_path, late, warned):
    rows = [(step, {'train/tokens_per_second': late}) for step in range(600, 801, 10)]
    found = warnings(tmp_path / 'run', losses(800), rows=rows, train__num_steps=800)
    assert ('slowing down' in found) == warned


@pytest.mark.parametrize(
    'evaluated, warned',
    [
        ({200: 3.0, 400: 2.8, 600: 2.9, 800: 3.0}, True),
        ({200: 3.0, 400: 2.8, 600: 2.81, 800: 2.82}, False),  # less than 1%
        ({200: 3.0, 400: 2.9, 600: 2.8, 800: 3.0}, False),  # one evaluation may be noise
        ({200: 3.0, 400: 2.9, 600: 2.8, 800: 2.7}, False),
    ],
)
def test_overfitting(tmp_path, evaluated, warned):
    found = warnings(tmp_path / 'run', losses(800), evaluated, train__num_steps=800)
    assert ('overfitting' in found) == warned
    if warned:
        assert found['overfitting'].steps == (400, 800)


def test_a_training_loss_that_rises_too_is_no_overfitting(tmp_path):
    rising = {step: 5 - loss for step, loss in losses(800).items()}
    evaluated = {200: 3.0, 400: 2.8, 600: 2.9, 800: 3.0}
    found = warnings(tmp_path / 'run', rising, evaluated, train__num_steps=800)
    assert 'overfitting' not in found


def test_every_rule_is_stated_in_the_docs():
    text = (pathlib.Path(__file__).parents[2] / 'docs' / 'report.md').read_text()
    for kind in RULES:
        assert f'| {kind} |' in text
