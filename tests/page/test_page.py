"""A page of one's own from the shared scripts: charts answer to pointer and keyboard."""

import re

import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.page import assemble, save

HOSTILE = '</script><img src=x onerror="document.title=1">'
APP = """// A page of the tests.

import { Axis, precise, tickText } from './axis.js';
import { average, interpolate, smooth } from './curves.js';
import { h } from './dom.js';
import { LineChart } from './line_chart.js';
import { Scatter } from './scatter.js';
import { themeButton } from './theme.js';
import { XRange } from './x_range.js';

const data = JSON.parse(document.getElementById('data').textContent);
const shown = new XRange();
const charts = [0, 1].map(() => new LineChart({ title: 'Height', unit: 'm', shown }));
const pick = (point) => { document.title = point.name; };
const scatter = new Scatter({ title: 'Mass', unit: 'kg', pick });
const elements = [...charts, scatter].map((each) => each.element);
document.body.append(h('h1', {}, data.title), themeButton(), ...elements);
const marks = [{ x: 50, text: 'a mark' }];
for (const chart of charts) chart.show(data.lines, { xTitle: 'time, s', marks });
scatter.show(data.points, { xTitle: 'age, years' });
Object.assign(window, { Axis, average, charts, interpolate, precise, shown, smooth, tickText });
"""


@pytest.fixture
def kind(tmp_path):
    folder = tmp_path / 'kind'
    (folder / 'scripts').mkdir(parents=True)
    (folder / 'scripts' / 'app.js').write_text(APP)
    (folder / 'style.css').write_text('h1 { color: rgb(1, 2, 3); }\n')
    return folder


def lines():
    x = list(range(101))
    up, down = [value / 10 for value in x], [10 - value / 10 for value in x]
    down[7] = None  # as JSON has NaN
    return [
        {'name': 'up', 'colour': 0, 'x': x, 'y': up, 'low': [v - 1 for v in up], 'high': up},
        {'name': 'down', 'colour': 1, 'x': x, 'y': down},
    ]


@pytest.fixture
def page(kind, opened):
    points = [
        {'name': 'young', 'colour': 0, 'x': 1, 'y': 5},
        {'name': 'old', 'colour': 1, 'x': 9, 'y': 7},
        {'name': 'unknown', 'colour': 1, 'x': 9, 'y': None},
    ]
    data = {'title': HOSTILE, 'lines': lines(), 'points': points}
    html = assemble(kind, data, title=HOSTILE)
    assert html.count('</script>') == 2
    return opened(html)


def test_texts_stay_texts_and_the_style_is_added(page):
    assert page.title() == HOSTILE == page.locator('h1').inner_text()
    assert page.locator('img').count() == 0
    colour = page.locator('h1').evaluate('each => getComputedStyle(each).color')
    assert colour == 'rgb(1, 2, 3)'


def test_a_page_is_saved_whole_or_not_at_all(tmp_path):
    assert save('<p>é', tmp_path / 'new' / 'page.html') == 5
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write'):
        save('<p>', tmp_path / 'file' / 'page.html')


def test_curves_are_smoothed_and_averaged(page):
    values = np.random.default_rng(0).normal(size=50).tolist()
    sums, total, expected = 0.0, 0.0, []
    for value in values:
        sums, total = 0.9 * sums + 0.1 * value, 0.9 * total + 0.1
        expected.append(sums / total)
    np.testing.assert_allclose(page.evaluate('v => smooth(v, 0.9)', values), expected)
    assert page.evaluate('smooth([2, NaN, 4], 0.5).map(String)')[1] == 'NaN'
    one, other = {'x': [0, 10, 20], 'y': [0, 10, 20]}, {'x': [0, 5, 10], 'y': [2, 2, 2]}
    mean = page.evaluate('both => average(both)', [one, other])
    assert mean['x'] == [0, 5, 10, 20]
    assert mean['y'] == [1, 3.5, 6, 20]  # the shorter one ends
    assert mean['low'] == [0, 2, 2, 20] and mean['high'] == [2, 5, 10, 20]


@pytest.mark.parametrize(
    'low, high, log, expected',
    [
        (0, 1, False, ['0', '0.2', '0.4', '0.6', '0.8', '1']),
        (3.21, 3.29, False, ['3.22', '3.24', '3.26', '3.28']),
        (-2, 2, False, ['−2', '−1', '0', '1', '2']),
        (0, 9e6, False, ['0', '2M', '4M', '6M', '8M']),
        (0.01, 0.01 + 1e-17, False, ['0.006', '0.008', '0.01', '0.012', '0.014']),
        (3, 3, True, ['2', '3', '4', '5', '6']),
        (0.5, 2000, True, ['1', '10', '100', '1000']),
        (2, 30, True, ['2', '5', '10', '20']),
        (1e-6, 1e-5, True, ['1e−6', '2e−6', '5e−6', '1e−5']),
    ],
)
def test_ticks_are_round(page, low, high, log, expected):
    ticks = f'new Axis([{low}, {high}], [300, 0], {str(log).lower()}).ticks(5)'
    assert page.evaluate(f'{ticks}.map(tickText)') == expected


def test_the_keyboard_reads_a_chart(page):
    chart = page.locator('.plot svg').first
    said = page.locator('.plot output').first
    chart.focus()
    chart.press('ArrowRight')
    assert said.inner_text() == '0; up 0; down 10'
    chart.press('End')
    chart.press('ArrowLeft')
    assert said.inner_text() == '99; up 9.9; down 0.1'
    chart.press('Home')
    for _ in range(5):
        chart.press('PageDown')
    assert said.inner_text() == '50; up 5; down 5; a mark'


def test_charts_share_their_zoom(page):
    def ticks(n):
        texts = page.locator('.plot svg').nth(n).locator('text[text-anchor=middle]')
        return texts.all_text_contents()

    first = page.locator('.plot svg').first
    before = ticks(1)
    box = first.bounding_box()
    page.mouse.move(box['x'] + box['width'] * 0.5, box['y'] + 60)
    page.mouse.down()
    page.mouse.move(box['x'] + box['width'] * 0.6, box['y'] + 80)
    page.mouse.up()
    low, high = page.evaluate('shown.range')
    assert 40 < low < 52 and 8 < high - low < 14
    assert ticks(0) == ticks(1) != before
    first.dblclick()
    assert page.evaluate('shown.range') is None and ticks(1) == before
    first.focus()
    first.press('ArrowRight')
    first.press('+')
    low, high = page.evaluate('shown.range')
    assert high - low <= 50
    first.press('0')
    assert page.evaluate('shown.range') is None


def test_the_pointer_reads_all_lines(page):
    chart = page.locator('.plot svg').first
    box = chart.bounding_box()
    chart.hover(position={'x': box['width'] / 2, 'y': 50})
    at, up, down = re.findall(r'[\d.]+', page.locator('#tip').inner_text())
    assert float(up) == pytest.approx(float(at) / 10)
    assert float(down) == pytest.approx(10 - float(at) / 10)
    page.mouse.move(0, 0)
    assert not page.locator('#tip').is_visible()


def test_a_logarithmic_axis_leaves_out_what_it_lacks(page):
    line = page.locator('.plot .line').first
    with_zero = line.get_attribute('d')
    page.get_by_role('button', name='Logarithmic y axis of Height').first.click()
    assert line.get_attribute('d').count('L') == with_zero.count('L') - 1
    ticks = page.locator('.plot svg').first.locator('text[text-anchor=end]').all_text_contents()
    assert ticks[-1] == '10'


def test_gaps_and_bands(page):
    paths = page.locator('.plot').first.locator('.line')
    assert paths.nth(1).get_attribute('d').count('M') == 2  # on both sides of the gap
    band = page.locator('.plot').first.locator('.band').get_attribute('d')
    assert band.count('M') == 1 and band.count('L') == 2 * 101 - 1


def test_points_of_a_scatter_plot(page):
    svg = page.locator('.plot svg').nth(2)
    assert svg.locator('g circle').count() == 2
    svg.focus()
    svg.press('ArrowRight')
    svg.press('ArrowRight')
    said = page.locator('.plot output').nth(2).inner_text()
    assert said == 'old; age, years: 9; Mass: 7'
    svg.press('Enter')
    assert page.title() == 'old'
