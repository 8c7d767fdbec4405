"""The page in Chromium: it needs no network, follows pointer and keyboard, and shows any text."""

import dataclasses
import re
import sys

import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses import ANALYSES
from gpt_jax.inspector.analyses.attention import AttentionMaps, roll_out
from gpt_jax.inspector.inspection import NamedArray
from gpt_jax.inspector.page import FOLDER, frame, render
from gpt_jax.inspector.replay import Replay
from gpt_jax.inspector.survey import survey
from gpt_jax.page import bundle, to_json

HOSTILE = '</script><img src=x onerror="document.title=1">'
TEXTS = ('One', ' two', '\n', ' three', '\u202e\x00', HOSTILE)


@dataclasses.dataclass(frozen=True)
class Colours:
    """An analysis that no view is made for."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    name = 'colours'
    title = 'Colours'
    about = 'It shows colours.'
    source = 'Newton 1704, https://example.org/opticks'
    pitfall = 'There is no light.'

    def data(self):
        signed = np.linspace(-1, 1, 3 * 2 * len(self.texts)).reshape(3, 2, -1)
        return {
            'hues': NamedArray(signed, ('layer', 'shade', 'position')),
            'shades': ('dark', 'pale'),
        }

    def rows(self):
        return [('hue', 'angle'), (HOSTILE, '3')]


def maps(texts, *, layers=2, heads=3):
    scores = np.random.default_rng(0).normal(size=(layers, heads, len(texts), len(texts)))
    weights = np.tril(np.exp(2 * scores))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    weights = NamedArray(weights, ('layer', 'head', 'position', 'source'))
    return AttentionMaps(tuple(range(len(texts))), tuple(texts), weights, roll_out(weights))


def test_every_view_is_drawn(opened):
    page = opened(render([maps(TEXTS), Colours(tuple(range(6)), TEXTS)], subtitle='a model'))
    tabs = page.get_by_role('tab')
    assert re.findall(r'[A-Z]\w+', ' '.join(tabs.all_inner_texts())) == [
        *('Attention', 'Rollout', 'Colours')
    ]
    for name, canvases in (('attention', 2 * 3 + 2), ('rollout', 1), ('colours', 1)):
        page.click(f'#tab-{name}')
        panel = page.locator(f'#view-{name}')
        assert panel.is_visible()
        assert panel.locator('canvas').count() == canvases
        drawn = panel.locator('figure canvas').last.evaluate(
            'it => new Set(it.getContext("2d").getImageData(0, 0, it.width, it.height).data).size'
        )
        assert drawn > 20, name
    said = re.sub(r'\s+', ' ', panel.inner_text())
    assert 'It shows colours. Pitfall There is no light. Source Newton 1704' in said
    assert panel.get_by_role('link').get_attribute('href') == 'https://example.org/opticks'


def test_pointer_and_keyboard_choose_tokens_heads_and_views(opened):
    page = opened(render([maps(TEXTS)]))
    details, tokens = page.locator('.details'), page.get_by_role('option')
    chosen = lambda: page.locator('[role=option][aria-selected=true]').inner_text()  # noqa: E731
    assert chosen().startswith('</script>')  # the last
    tokens.nth(1).hover()
    assert '·two token 1, id 1' in details.inner_text()
    assert chosen().startswith('</script>')
    tokens.nth(3).click()
    page.mouse.move(5, 5)
    assert chosen() == '·three' and 'token 3' in details.inner_text()
    assert 'What ·three (3) reads' in page.locator('#view-attention').inner_text()
    page.keyboard.press('ArrowLeft')
    assert chosen() == '↵'
    page.keyboard.press('Home')
    page.keyboard.press('ArrowLeft')
    assert chosen() == 'One'
    page.get_by_role('button', name='layer 1, head 2').click()
    assert 'Layer 1, head 2' in page.locator('#view-attention').inner_text()
    page.get_by_role('button', name='what reads it').click()
    assert 'What One (0) is read by' in page.locator('#view-attention').inner_text()
    page.keyboard.press('2')
    assert page.locator('#view-rollout').is_visible()
    page.keyboard.press('[')
    assert page.locator('#view-attention').is_visible()
    page.keyboard.press('?')
    assert page.get_by_role('dialog').is_visible()
    page.keyboard.press('Escape')
    assert not page.get_by_role('dialog').is_visible()


def test_a_map_says_its_values_to_the_keyboard(opened):
    analysis = maps(TEXTS)
    page = opened(render([analysis]))
    page.keyboard.press('2')
    canvas = page.locator('#view-rollout canvas')
    canvas.focus()
    for key in ('ArrowDown', 'ArrowDown', 'ArrowRight', 'ArrowDown'):
        canvas.press(key)
    share = round(analysis.rollout.values[-1, 2, 1] * 255) / 255  # as it is stored
    said = page.locator('#view-rollout output').inner_text()
    assert said == f'{share:.0%} of ↵ (2) comes from ·two (1)'
    canvas.press('Enter')
    assert page.locator('[role=option][aria-selected=true]').inner_text() == '↵'
    page.locator('#view-rollout summary').click()
    cell = page.locator('#view-rollout tbody tr').nth(2).locator('td').nth(2).inner_text()
    assert cell == f'{share:.0%}'


def test_hostile_tokens_are_text(opened):
    html = render([maps(TEXTS), Colours(tuple(range(6)), TEXTS)])
    assert html.count('</script>') == 2
    page = opened(html)
    assert page.title() == 'Inside a GPT'
    assert page.locator('img').count() == 0
    shown = page.get_by_role('option').all_inner_texts()
    assert shown[2] == '↵' and shown[4] == '\\u202e\\u0000'
    assert shown[5] == HOSTILE.replace(' ', '·')


def test_twelve_layers_of_twelve_heads_are_under_3_megabytes(opened):
    texts = [f' w{i}' for i in range(64)]
    html = render([maps(texts, layers=12, heads=12)])
    assert len(html.encode()) < 3e6
    page = opened(html)
    assert page.locator('.small').count() == 144


def test_arrays_keep_their_values(opened):
    page = opened(render([maps(TEXTS)]))
    values = [0.0, -0.0, 1.5, -65000.0, 6e-8, 3e-5, np.inf, -np.inf, np.nan, 1 / 3]
    for array, expected in (
        (np.array(values), np.array(values, np.float16)),
        (np.array([1e6, -2.0]), np.array([1e6, -2.0])),
        (np.array([0, -7, 50256]), np.array([0, -7, 50256])),
        (np.array([2**40]), np.array([2**40])),
    ):
        stored = to_json(NamedArray(array, ('position',)))
        code = re.sub(r'^const page = .*$', '', bundle(FOLDER), flags=re.M)
        code = (
            code[: code.index('// Colours of values')]
            + f'\n[...decode({stored}).values].map(String)'
        )
        read = [float(each.replace('Infinity', 'inf')) for each in page.evaluate(code)]
        np.testing.assert_allclose(read, expected, rtol=1e-6)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_themes_follow_the_system_and_the_switch(opened, scheme):
    page = opened(render([maps(TEXTS)]), color_scheme=scheme)
    background = lambda: page.evaluate('getComputedStyle(document.body).backgroundColor')  # noqa: E731
    before = background()
    assert (sum(map(int, re.findall(r'\d+', before))) > 384) == (scheme == 'light')
    page.get_by_role('button', name='Light or dark').click()
    assert background() != before
    page.emulate_media(media='print')
    page.locator('html[data-theme=light]').wait_for(state='attached')
    page.locator('#view-rollout').wait_for(state='visible')  # all views are printed


def test_a_phone_scrolls_down_only(opened):
    long = [*TEXTS, *['incomprehensibilities'] * 40]
    analyses = [maps(long), Colours(tuple(range(len(long))), tuple(long))]
    page = opened(render(analyses), viewport={'width': 390, 'height': 844}, has_touch=True)
    for view in ('attention', 'rollout', 'colours'):
        page.tap(f'#tab-{view}')
        assert page.evaluate('document.documentElement.scrollWidth') == 390, view
    page.get_by_role('option').nth(1).tap()
    assert 'token 1' in page.locator('.details').inner_text()


@pytest.mark.slow
def test_a_model_is_shown_with_all_its_analyses(opened):
    gpt = GPT(vocab_size=300, num_layers=2, num_heads=2, d_model=16, max_seq_len=16)
    result = survey(gpt.inspector, 'Once upon', against='One a pon')
    assert [*result.analyses] == [*ANALYSES] and not result.skipped
    page = opened(render([*result.analyses.values()]))
    for tab in page.get_by_role('tab').all():
        tab.click()
        panel = page.locator(f'#{tab.get_attribute("aria-controls")}')
        assert panel.locator('canvas, svg, table').count(), tab.inner_text()
    assert page.get_by_role('tab').count() == len(ANALYSES) + 1  # rollout has its own
    page.get_by_role('option').nth(4).hover()
    attribution = result.analyses['attribution']
    parts = {'MLP': attribution.next_mlps.values[3]}
    parts |= {f'head {i}': attribution.next_heads.values[3, :, i] for i in range(2)}
    largest = max(
        (abs(value), f'layer {layer} {name}')
        for name, values in parts.items()
        for layer, value in enumerate(values)
    )
    said = page.locator('.details').inner_text()
    assert re.search(r'Largest parts of its logit\s+' + largest[1], said)
    source = int(abs(attribution.next_sources.values[3]).argmax())
    assert re.search(rf'Tokens that the heads read\s+\S+ \({source}\)', said)


def test_a_notebook_shows_an_analysis_in_a_frame(opened):
    page = opened(f'<!doctype html><title>notebook</title>{frame([maps(TEXTS)])}')
    inside = page.frame_locator('iframe')
    inside.get_by_role('option').nth(1).click()
    assert 'token 1' in inside.locator('.details').inner_text()
    assert page.title() == 'notebook'


def test_inspections_and_analyses_are_frames_in_a_notebook():
    gpt = GPT(vocab_size=300, num_layers=2, num_heads=2, d_model=16, max_seq_len=16)
    seen = gpt.inspect('Once', points=['residual_after', 'attention.weights', 'logits'])
    assert seen._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert list(seen.data()) == ['attention.weights', 'residual_after', 'logits']
    norms = np.sqrt((seen['residual_after'].values ** 2).mean(-1))
    np.testing.assert_allclose(seen.data()['residual_after'].values, norms, rtol=1e-5)
    assert 'logits' in seen.rows()[-1] and len(seen.rows()) == 1 + 2 + 2 + 1
    found = AttentionMaps.run(gpt.inspector, 'Once', inspection=seen)
    assert 'Attention' in found._repr_html_()


def test_plot(monkeypatch):
    matplotlib = pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    matplotlib.use('agg')
    found = maps(TEXTS)
    axes = found.plot('weights', layer=1, head=2)
    assert axes.get_title() == 'Attention, weights, layer 1, head 2'
    np.testing.assert_array_equal(axes.images[0].get_array(), found.weights.values[1, 2])
    assert [each.get_text() for each in axes.get_xticklabels()][1:3] == [' two', r'\n']
    line = found.plot('rollout', layer=0, position=5)
    np.testing.assert_array_equal(line.lines[0].get_ydata(), found.rollout.values[0, 5])
    with pytest.raises(UserError, match='layer, head, position, source; give indices'):
        found.plot()
    with pytest.raises(UserError, match="no array 'weight'; it has weights, rollout"):
        found.plot('weight')
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(UserError, match='pip install matplotlib'):
        found.plot('weights', layer=1, head=2)


@pytest.mark.parametrize('width', [390, 1280])
def test_a_replayed_batch(opened, tmp_path, width):
    ids = np.arange(12).reshape(2, 6) % len(TEXTS)
    loss = np.array([[1, 2, 3, 4, np.nan], [5, 6, 7, 8, 9.0]])
    result = Replay(
        step=7,
        sources=('books',),
        texts=dict(enumerate(TEXTS)),
        tokens=ids,
        loss=loss,
        source=np.zeros(2, int),
        start=np.array([0, 50]),
        documents=np.array([[1, 1, 1, 2, 2, 2]] * 2),
    )
    result.save(tmp_path / 'replay.html', title='Step 7', facts={'loss': HOSTILE})
    html = (tmp_path / 'replay.html').read_text('utf-8')
    page = opened(html, viewport={'width': width, 'height': 800})
    headings = page.get_by_role('heading', level=2)
    assert headings.all_inner_texts() == ['Sequence 1: loss 7.000', 'Sequence 0: loss 2.500']
    first = page.locator('.sequence').first
    assert 'tokens 50 to 55' in first.inner_text() and first.locator('hr').count() == 1
    assert HOSTILE in first.locator('.text').inner_text()
    first.locator('span').nth(2).click()
    readout = page.locator('.readout')
    assert (
        ' '.join(readout.inner_text().split())
        == '↵ loss 6.000, probability 0.2%; id 2, token 2 of sequence 1'
    )
    page.get_by_role('button', name='as in the batch').click()
    assert headings.first.inner_text() == 'Sequence 0: loss 2.500'
    page.locator('.sequence').first.locator('span').nth(5).click()
    assert 'not learned' in readout.inner_text()
    assert page.evaluate('document.documentElement.scrollWidth') == width
