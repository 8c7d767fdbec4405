"""The reasons for a token: the numbers of the analyses, their route, and the panel in Chromium."""

import asyncio
import dataclasses
import json
import threading

import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.attribution import Attribution
from gpt_jax.inspector.analyses.lens import Lens
from gpt_jax.inspector.edits import zero
from gpt_jax.inspector.token_explanation import TokenExplanation
from gpt_jax.model.config import NormPlacement
from tests.accessible import LOOKS, check_accessible
from tests.serve.pages import open_page, panel_of, pieces_of, text_of, write
from tests.serve.tiny import fit, serving

pytest.importorskip('uvicorn', reason='needs the extra serve')

NAMES = ['lens', 'attribution', 'ablation']
AT = 9
IDS = fit().tokenizer.encode('Alice was beginning to get very tired')


@pytest.fixture(scope='module')
def client():
    with serving() as client:
        yield client


@pytest.fixture(scope='module')
def explanation():
    return TokenExplanation(fit().inspector)


def test_the_numbers_are_those_of_the_text_without_padding(explanation):
    inspector, seen = fit().inspector, IDS[: AT + 1]
    found = explanation(IDS, AT, NAMES)
    lens = Lens.run(inspector, seen)
    stages = found['lens']['stages']
    assert [each['id'] for each in stages] == lens.choices.values[:, -2, 0].tolist()
    assert [each['rank_of_token'] for each in stages] == lens.next_rank.values[:, -1].tolist()
    shares = [each['probability_of_token'] for each in stages]
    np.testing.assert_allclose(shares, lens.next_probability.values[:, -1], rtol=1e-4)
    attribution = Attribution.run(inspector, seen, token=seen[-1], position=AT - 1)
    parts = {each['name']: each['value'] for each in found['attribution']['parts']}
    assert parts == pytest.approx(dict(attribution.parts()), abs=1e-4)
    assert sum(parts.values()) == pytest.approx(found['attribution']['logit'], abs=1e-4)


def test_ablation_is_the_change_without_a_part(explanation):
    def logprob(*edits):
        logits = fit().inspector.run(IDS, edits).logits.values[AT - 1].astype(np.float64)
        return (logits - np.log(np.exp(logits).sum()))[IDS[AT]]

    found = explanation(IDS, AT, ['ablation'])['ablation']
    assert found['logprob'] == pytest.approx(logprob(), abs=1e-4)
    changes = {each['name']: each['value'] for each in found['parts']}
    without_head = logprob(zero('attention.heads', layer=1, head=0))
    without_mlp = logprob(zero('mlp_output', layer=0))
    assert changes['layer 1 head 0'] == pytest.approx(without_head - logprob(), abs=1e-4)
    assert changes['layer 0 MLP'] == pytest.approx(without_mlp - logprob(), abs=1e-4)
    assert len(changes) == 2 * (2 + 1 + 1)


def test_texts_longer_than_the_context_end_at_the_token(explanation):
    long = (IDS * 20)[:200]
    found, alone = explanation(long, 180, ['lens']), explanation(long[31:181], 149, ['lens'])
    assert found == alone
    with pytest.raises(UserError, match='nothing predicts'):
        explanation(long, 0, ['lens'])


def test_a_model_without_a_sum_has_the_obstacle():
    inspector = fit().inspector
    config = dataclasses.replace(inspector.config, norm_placement=NormPlacement.POST)
    changed = TokenExplanation(type(inspector)(config, inspector.params, inspector.tokenizer))
    found = changed(IDS, AT, ['attribution'])['attribution']
    assert found == {'obstacle': Attribution.obstacle(changed._inspector)}
    assert 'norm_placement' in found['obstacle']


def test_the_route_checks_its_body(client):
    found = client.ask('/inspect/token', tokens=IDS, position=AT, analyses=['lens'])
    assert list(found) == ['lens'] and len(found['lens']['stages']) == 3
    assert list(client.ask('/inspect/token', tokens=IDS, position=AT)) == NAMES
    for body, words in {
        '{"tokens": [1, 2], "position": 2}': 'fewer tokens',
        '{"tokens": [1, 2], "position": 0}': 'nothing predicts',
        '{"tokens": [1, 99999], "position": 1}': '99999',
        '{"tokens": [1, 2], "position": 1, "analyses": ["mood"]}': 'analyses',
    }.items():
        status, _, content = client.request('/inspect/token', body.encode())
        assert status == 400 and words in json.loads(content)['error']['message'], content


def test_one_question_at_a_time_and_the_latest_next():
    from gpt_jax.serve.http.errors import ApiError
    from gpt_jax.serve.http.latest_next import LatestNext

    begun, may_end, order = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        assert may_end.wait(20)
        order.append('first')

    async def ask():
        queue = LatestNext()
        tasks = [asyncio.ensure_future(queue.run(first))]
        await asyncio.to_thread(begun.wait, 20)
        for name in ('second', 'third', 'fourth'):
            tasks.append(asyncio.ensure_future(queue.run(lambda name=name: order.append(name))))
            await asyncio.sleep(0.01)
        tasks[0].cancel()  # its thread runs on
        tasks[3].cancel()
        tasks.append(asyncio.ensure_future(queue.run(lambda: order.append('fifth'))))
        await asyncio.sleep(0.01)
        assert order == []
        may_end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    _, second, third, fourth, fifth = asyncio.run(ask())
    assert order == ['first', 'fifth'] and fifth is None
    assert isinstance(second, ApiError) and isinstance(third, ApiError) and second.status == 409
    assert isinstance(fourth, asyncio.CancelledError)


def test_the_page_explains_a_token(browse, client):
    page = open_page(browse, client)
    write(page)
    pieces_of(page).nth(AT).click()
    panel_of(page).get_by_role('button', name='Explain this token').click()
    page.get_by_text('answered in').wait_for()
    region = page.get_by_role('region', name=f'(token {AT})')
    chosen = page.locator('.piece.shown').text_content()
    assert region.get_by_role('heading', level=2).inner_text().startswith(f'Why {chosen or "·"}')
    rows = region.get_by_role('table').get_by_role('row')
    assert [rows.nth(i).inner_text().split('\t')[0] for i in range(1, 4)] == [
        'embedding', 'layer 0', 'layer 1',
    ]  # fmt: skip
    assert region.get_by_text('MLP', exact=False).count() >= 4
    pieces_of(page).nth(0).click()
    assert panel_of(page).get_by_role('button', name='Explain').count() == 0
    page.get_by_role('button', name='Continue').click()
    text_of(page)
    assert region.is_visible(), 'its token is still there'
    write(page)
    assert not region.is_visible()


@pytest.mark.slow
@pytest.mark.parametrize('look', LOOKS)
def test_the_page_is_accessible(browse, client, look):
    page = open_page(browse, client, **look)
    page.get_by_role('spinbutton', name='Temperature').fill('1.5')
    write(page)
    pieces_of(page).nth(AT).click()
    page.get_by_text('What these settings do').click()
    panel_of(page).get_by_role('button', name='Explain this token').click()
    page.get_by_text('answered in').wait_for()
    page.get_by_text('attention', exact=True).click()
    page.get_by_text('mean of its heads').wait_for()
    check_accessible(page)
    page.get_by_role('button', name='Chat', exact=True).click()
    page.get_by_role('textbox', name='Message').fill('Why?')
    page.get_by_role('button', name='Send').click()
    page.get_by_role('list', name='Messages').get_by_role('listitem').nth(1).wait_for()
    check_accessible(page)
