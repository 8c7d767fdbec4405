"""The page of a sweep in a browser."""

import re

import pytest

pytest.importorskip('optuna')

from gpt_jax.page import assemble
from gpt_jax.sweep.results import PAGE_FOLDER

HOSTILE = '</script><b>x'


def make_results(count: int = 12, **changes) -> dict:
    """Results of trials with a rate and a kind; every third is pruned, the last one failed."""
    trials = []
    for number in range(count):
        state = 'failed' if number == count - 1 else 'pruned' if number % 3 == 1 else 'complete'
        curve = {str(step): 3 + number / 10 + 1 / step for step in (10, 20, 30)}
        if state == 'pruned':
            curve = {'10': curve['10']}
        trials.append(
            {
                'trial': number,
                'state': state,
                'value': curve['30'] if state == 'complete' else None,
                'params': {
                    'rate': 10.0 ** -(1 + number % 4),
                    'kind': ['muon', HOSTILE][number % 2],
                },
                'curve': {} if state == 'failed' else curve,
                'seconds': 12.3,
                'attempts': 1,
                'machine': 'one',
                'reason': HOSTILE if state == 'failed' else '',
                'command': 'python -m gpt_jax.main',
            }
        )
    return {
        'study': HOSTILE,
        'config': 'x.py',
        'metric': 'eval/loss',
        'direction': 'minimize',
        'best': 0,
        'knobs': {
            'rate': {'choices': None, 'log': True},
            'kind': {'choices': ['muon', HOSTILE], 'log': False},
        },
        'importance': {'rate': 0.75, 'kind': 0.25},
        'git_commit': 'abc',
        'versions': {'optuna': '5'},
        'date': '2026-11-29',
        'trials': trials,
    } | changes


def open_results(opened, results, **options):
    return opened(assemble(PAGE_FOLDER, results, title='Sweep'), **options)


def circles(plot):
    return plot.locator('svg g circle')


def test_a_point_and_a_line_for_each_trial(opened):
    page = open_results(opened, make_results())
    assert page.locator('h1').inner_text() == HOSTILE and page.locator('b').count() == 0
    plots = page.locator('.plot')
    assert plots.count() == 4
    complete, shown = 7, 11  # the failed one reported nothing
    assert circles(plots.nth(0)).count() == circles(plots.nth(1)).count() == complete
    assert page.locator('.parallel g').count() == complete
    assert plots.nth(3).locator('.line').count() == shown
    assert plots.nth(3).locator('.dashed').count() == shown - complete
    page.get_by_role('button', name='at their last value').click()
    assert circles(plots.nth(0)).count() == shown == page.locator('.parallel g').count()
    assert page.locator('.parallel .pruned').count() == shown - complete


def test_a_logarithmic_knob_has_a_logarithmic_axis(opened):
    page = open_results(opened, make_results())
    xs = {float(each.get_attribute('cx')) for each in circles(page.locator('.plot').first).all()}
    steps = [round(b - a) for a, b in zip(sorted(xs), sorted(xs)[1:], strict=False)]
    assert len(xs) == 4 and max(steps) - min(steps) <= 1


def test_colours_follow_the_menu(opened):
    page = open_results(opened, make_results())
    points = page.locator('.plot').first.locator('svg g:has(circle)')
    assert {each.get_attribute('class') for each in points.all()} == {'series-0', 'series-1'}
    assert page.locator('main .legend').first.inner_text().split('\n') == ['muon', HOSTILE]
    page.get_by_label('Colour by').select_option('none')
    assert {each.get_attribute('class') for each in points.all()} == {'series-0'}


def test_a_line_of_parallel_coordinates_says_its_trial(opened):
    page = open_results(opened, make_results(2))
    page.locator('.parallel .hit').first.dispatch_event('pointermove', {'clientX': 5, 'clientY': 5})
    assert page.locator('#tip').inner_text() == ('trial 0: rate=0.1, kind=muon\neval/loss: 3.033')
    label = page.locator('.parallel svg').get_attribute('aria-label')
    assert 'trial 0: rate=0.1, kind=muon, eval/loss 3.033' in label


def test_the_table_is_sorted_by_the_metric(opened):
    page = open_results(opened, make_results(direction='maximize', best=9))
    values = page.locator('#trials tbody tr td:nth-child(3)').all_inner_texts()
    known = [float(value) for value in values if value != '–']
    assert known == sorted(known, reverse=True) and set(values[len(known) :]) == {'–'}
    assert re.search('trial 9; to maximize', page.locator('#best-trial').inner_text())


def test_a_sweep_with_little_to_show(opened):
    none = make_results(1, best=None, importance={})
    page = open_results(opened, none)
    assert page.locator('section').count() == 3
    empty = none | {'trials': [], 'knobs': {}}
    page = open_results(opened, empty)
    assert page.locator('h1').count() == 1
    only_pruned = make_results(3, best=None)
    only_pruned['trials'] = only_pruned['trials'][1:2]
    page = open_results(opened, only_pruned)
    assert circles(page.locator('.plot').first).count() == 1


@pytest.mark.parametrize('width', [390, 1280])
def test_nothing_is_wider_than_the_screen(opened, width):
    page = open_results(opened, make_results(), viewport={'width': width, 'height': 900})
    assert page.evaluate('document.documentElement.scrollWidth') <= width
