"""The page of a server in Chromium: it writes the server's texts and shows their origin."""

import json
import pathlib
import re

import numpy as np
import pytest

from gpt_jax.inference.config import SampleConfig
from tests.serve.pages import open_page, panel_of, pieces_of, text_of, write
from tests.serve.tiny import alone, fit, serving, until

pytest.importorskip('uvicorn', reason='needs the extra serve')

KEY = 'k' * 20


@pytest.fixture(scope='module')
def client():
    with serving() as client:
        yield client


@pytest.fixture
def page(browse, client):
    return open_page(browse, client)


def greedy(prompt, tokens):
    [found] = alone(fit(), prompt, SampleConfig(temperature=0.0, max_new_tokens=tokens))
    return found


def test_the_text_is_that_of_generate(page):
    assert write(page) == 'Alice' + greedy('Alice', 20).text
    page.get_by_role('button', name='Continue').click()
    assert text_of(page) == 'Alice' + greedy('Alice', 40).text
    page.get_by_role('textbox', name='Prompt').fill('<img src=x onerror=a> é')
    assert write(page).startswith('<img src=x onerror=a> é')
    assert page.locator('img').count() == 0
    page.get_by_role('textbox', name='Prompt').fill('')
    assert write(page), 'after the end-of-text token'


def test_another_token_can_be_gone_on_with(page):
    write(page)
    at = len(fit().tokenizer.encode('Alice')) + 3
    pieces_of(page).nth(at).click()
    panel = panel_of(page)
    shares = [float(share) for share in re.findall(r'([\d.]+)%', panel.inner_text())]
    assert len(shares) == 11 and shares[1:] == sorted(shares[1:], reverse=True)
    panel.get_by_role('button').nth(1).click()
    text = text_of(page)
    pieces_of(page).nth(at).hover()
    chosen = int(re.search(r'id (\d+)', panel.inner_text())[1])
    tokenizer = fit().tokenizer
    ids = [*tokenizer.encode('Alice'), *greedy('Alice', 3).tokens, chosen]
    assert chosen != greedy('Alice', 4).tokens[3]
    assert text == tokenizer.decode([*ids, *greedy(ids, 20).tokens])


def test_settings_show_what_they_do_to_a_token(page):
    write(page)
    pieces_of(page).nth(12).click()
    page.mouse.move(5, 5)
    page.get_by_text('What these settings do').click()
    rows = page.locator('.before-after tbody tr')
    rows.first.wait_for()
    columns = lambda at: [row.locator('td').nth(at).inner_text() for row in rows.all()]  # noqa: E731
    assert columns(3) == ['100%', *['–'] * 9], 'greedy'
    shown = [
        each.split('\n')[-1] for each in panel_of(page).get_by_role('listitem').all_inner_texts()
    ]
    assert columns(2) == shown
    page.get_by_role('spinbutton', name='Temperature').fill('2')
    before, after = ([float(x[:-1]) / 100 for x in columns(at)] for at in (2, 3))
    flat = np.sqrt(before)
    np.testing.assert_allclose(after, flat / flat.sum(), atol=0.012)
    page.get_by_role('spinbutton', name='Top-k').fill('2')
    np.testing.assert_allclose(float(columns(3)[0][:-1]), 100 * flat[0] / flat[:2].sum(), atol=1.5)
    assert columns(3)[2:] == ['–'] * 8
    page.get_by_role('spinbutton', name='Top-k').fill('0')
    page.get_by_role('spinbutton', name='Top-p').fill('0.0001')
    assert columns(3) == ['100%', *['–'] * 9]
    page.get_by_role('spinbutton', name='Top-p').fill('3')
    assert rows.count() == 0 and page.get_by_text('Top-p: ').count() == 1


def test_attention_is_that_of_the_inspector(page):
    write(page)
    page.get_by_text('attention', exact=True).click()
    page.get_by_role('combobox', name='Layer').select_option('layer 1')
    page.get_by_role('combobox', name='Head').select_option('head 0')
    pieces_of(page).nth(12).click()
    page.get_by_text('layer 1, head 0').wait_for()
    ids, found = page.evaluate(
        """async () => {
      const script = new URL('scripts/server_backend.js', document.baseURI);
      const { ServerBackend } = await import(script);
      const backend = new ServerBackend(document.baseURI, '');
      await backend.connect();
      const tokens = await backend.tokenize('Alice was beginning to get very tired');
      const found = await backend.attention(tokens.map(({ id }) => id), 9);
      return [tokens.map(({ id }) => id), { ...found, weights: [...found.weights] }];
    }"""
    )
    seen = fit().inspector.inspect(ids, points=['attention.weights'])['attention.weights']
    weights = np.reshape(found['weights'], (2, 2, 10))
    np.testing.assert_allclose(weights, seen.values[:, :, 9, :10], atol=1e-5)
    assert found['start'] == 0


def test_spaces_stay_in_the_panel(page):
    page.set_viewport_size({'width': 390, 'height': 800})
    page.get_by_role('textbox', name='Prompt').fill('a' + 100 * ' ' + 'b')
    write(page, tokens=1)
    edges = page.evaluate(
        """() => {
      const right = (each) => each.getBoundingClientRect().right;
      const pieces = [...document.querySelectorAll('.piece')];
      return [right(document.querySelector('.text')), ...pieces.map(right)];
    }"""
    )
    assert len(edges) > 50 and max(edges[1:]) <= edges[0]


def test_a_click_reaches_a_token_under_the_growing_panel(page):
    page.set_viewport_size({'width': 390, 'height': 600})
    page.add_style_tag(content='.text { padding-bottom: 100vh; }')  # the panel is over the text
    write(page)
    last = pieces_of(page).last
    page.mouse.move(1, 1)
    panel = page.locator('.side')
    last.evaluate("each => each.scrollIntoView({ block: 'end' })")
    page.evaluate(f'scrollBy(0, {panel.bounding_box()["height"] + 4})')
    box = last.bounding_box()
    middle = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    page.mouse.move(*middle)
    panel_of(page).get_by_role('heading', name='Go on with').wait_for()
    assert panel.bounding_box()['y'] < box['y'], 'the panel covers the token'
    page.mouse.down()
    page.mouse.up()
    assert last.get_attribute('aria-selected') == 'true'
    panel_of(page).get_by_role('button').nth(1).click()
    text_of(page)


def test_the_server_may_give_few_alternatives(browse):
    with serving(best=2) as client:
        page = open_page(browse, client)
        assert write(page) == 'Alice' + greedy('Alice', 20).text
        pieces_of(page).nth(12).click()
        assert panel_of(page).get_by_role('listitem').count() == 2


def test_an_unknown_model_is_said(browser, client):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f'http://127.0.0.1:{client.port}/?model=none')
        page.get_by_text('there is no model none here; this server has tiny').wait_for()


def test_stop_frees_the_row(page, client):
    page.get_by_role('spinbutton', name='Tokens').fill('40000')
    page.get_by_role('button', name='Generate', exact=True).click()
    until(lambda: pieces_of(page).count() > 20)
    page.get_by_role('button', name='Stop').click()
    text_of(page)
    until(lambda: client.metric('running') == 0)


def test_a_text_longer_than_the_context_is_continued(page):
    assert write(page, tokens=145)
    page.get_by_role('button', name='Continue').click()
    text_of(page)
    assert '145 tokens' in page.get_by_role('status').inner_text()


def test_a_server_with_keys_asks_for_one(browser):
    with serving(keys=[KEY]) as client, browser.new_context() as context:
        page = context.new_page()
        page.goto(f'http://127.0.0.1:{client.port}/')
        page.get_by_label('The key of this server').fill('wrong')
        page.get_by_role('button', name='Open').click()
        page.get_by_label('That is not a key').fill(KEY)
        page.get_by_role('button', name='Open').click()
        assert write(page) == 'Alice' + greedy('Alice', 20).text
        page.reload()
        assert write(page), 'the key is kept in this tab'


def test_a_server_that_ends_is_said(browser):
    with browser.new_context() as context:
        with serving() as client:
            page = context.new_page()
            page.goto(f'http://127.0.0.1:{client.port}/')
            write(page)
        page.get_by_role('button', name='Generate', exact=True).click()
        page.get_by_text('the server does not answer').wait_for()


def test_a_link_has_it_all(browse, client, page):
    page.get_by_role('spinbutton', name='Seed').fill('7')
    page.get_by_role('textbox', name='Prompt').fill('Alice & <b>é</b>\n#x')
    text = write(page)
    look = lambda page: [each.get_attribute('style') for each in pieces_of(page).all()]  # noqa: E731
    styles = look(page)
    page.get_by_role('button', name='Copy link').click()
    page.get_by_text('the link is').wait_for()
    other = open_page(browse, client, path='#' + page.url.partition('#')[2])
    assert text_of(other) == text and '<b>é</b>' in text
    assert look(other) == styles and not styles[0] and styles[-1]
    assert other.get_by_role('textbox', name='Prompt').input_value() == 'Alice & <b>é</b>\n#x'
    assert other.get_by_role('spinbutton', name='Seed').input_value() == '7'
    other.get_by_role('button', name='Continue').click()
    page.get_by_role('button', name='Continue').click()
    assert text_of(other) == text_of(page) != text
    other.get_by_role('button', name='Chat', exact=True).click()
    other.evaluate("location.hash = 'prompt=y&temperature=1'")
    other.get_by_role('textbox', name='Prompt').wait_for()
    assert other.get_by_role('textbox', name='Prompt').input_value() == 'y'
    other.evaluate("location.hash = 'prompt=x&temperature=9&ids=1.99999'")
    other.get_by_text('the link has tokens that this model does not have').wait_for()


def test_the_saved_file_has_tokens_and_probabilities(page):
    text = write(page)
    with page.expect_download() as download:
        page.get_by_role('button', name='Save').click()
    found = json.loads(pathlib.Path(download.value.path()).read_text())
    prompt = len(fit().tokenizer.encode('Alice'))
    assert found['text'] == text and found['prompt'] == 'Alice' and found['model'] == 'tiny'
    assert [each['id'] for each in found['tokens'][prompt:]] == greedy('Alice', 20).tokens
    assert all(each['logprob'] is None for each in found['tokens'][:prompt])
    for token in found['tokens'][prompt:]:
        assert token['probability'] == pytest.approx(np.exp(token['logprob']))
        assert token['alternatives'][0]['id'] == token['id'] and len(token['alternatives']) == 10


def test_a_saved_file_opens(browse, client, page, tmp_path):
    text = write(page)
    with page.expect_download() as download:
        page.get_by_role('button', name='Save').click()
    saved = tmp_path / 'saved.json'
    download.value.save_as(saved)
    styles = [each.get_attribute('style') for each in pieces_of(page).all()]
    other = open_page(browse, client)
    other.get_by_role('textbox', name='Prompt').fill('x')
    other.get_by_label('Saved text').set_input_files(saved)
    other.get_by_text('tokens of saved.json').wait_for()
    assert text_of(other) == text
    assert [each.get_attribute('style') for each in pieces_of(other).all()] == styles
    assert other.get_by_role('textbox', name='Prompt').input_value() == 'Alice'
    assert other.get_by_role('spinbutton', name='Tokens').input_value() == '20'
    content = json.loads(saved.read_text())
    for change, said in (
        ({'model': 'big'}, 'which big wrote; the probabilities are those of tiny'),
        ({'prompt': 1}, 'saved.json is not a text that such a page wrote'),
        ({'tokens': {}}, 'saved.json is not a text that such a page wrote'),
        ({'tokens': [None]}, 'saved.json has tokens that this model does not have'),
        ({'tokens': [{'id': 99999}]}, 'saved.json has tokens that this model does not have'),
    ):
        saved.write_text(json.dumps(content | change))
        other.get_by_label('Saved text').set_input_files(saved)
        other.get_by_text(said).wait_for()
    saved.write_text('no JSON')
    other.get_by_label('Saved text').set_input_files(saved)
    other.get_by_text('saved.json is not a text that such a page wrote').wait_for()


def test_a_conversation_is_shared(browse, client, page, tmp_path):
    page.get_by_role('button', name='Chat', exact=True).click()
    page.get_by_role('spinbutton', name='Tokens').fill('15')
    messages = lambda page: page.get_by_role('list', name='Messages').get_by_role('listitem')  # noqa: E731
    for number in (2, 4):
        page.get_by_role('textbox', name='Message').fill('Why <b>&?')
        page.get_by_role('button', name='Send').click()
        text_of(page)
        until(lambda: messages(page).count() == number)  # noqa: B023
    page.get_by_role('button', name='Copy link').click()
    page.get_by_text('the link is').wait_for()
    with page.expect_download() as download:
        page.get_by_role('button', name='Save').click()
    download.value.save_as(tmp_path / 'saved.json')
    linked = open_page(browse, client, path='#' + page.url.partition('#')[2], name='Send')
    opened = open_page(browse, client)
    opened.get_by_label('Saved text').set_input_files(tmp_path / 'saved.json')
    opened.get_by_role('button', name='Send', exact=True).wait_for()
    said = []
    for each in (page, linked, opened):
        text = text_of(each)
        until(lambda: messages(each).count() == 4)  # noqa: B023
        before = messages(each).all_text_contents()
        each.get_by_role('spinbutton', name='Temperature').fill('1.5')
        each.get_by_role('button', name='Regenerate').click()
        until(lambda: messages(each).all_text_contents() not in (before, before[:3]))  # noqa: B023
        said.append((text, before, text_of(each), messages(each).all_text_contents()))
    assert said[0] == said[1] == said[2]
    long = json.dumps([{'role': 'user', 'content': 'a' * 9000}] * 2)
    page.evaluate(f"location.hash = 'prompt=&messages=' + encodeURIComponent('{long}')")
    until(lambda: messages(page).count() == 2)
    page.get_by_role('button', name='Copy link').click()
    page.get_by_text('this conversation is too long for a link; save it instead').wait_for()


def test_two_models_side_by_side(browse):
    with serving(names=('tiny', 'other')) as client:
        page = open_page(browse, client, viewport={'width': 1200, 'height': 900})
        page.get_by_role('combobox', name='Compare with').select_option('other')
        asked = []
        page.on('request', lambda request: asked.append(request.post_data_json or {}))
        page.get_by_role('button', name='Generate', exact=True).click()
        page.get_by_role('button', name='Continue', disabled=False).wait_for()
        assert (
            page.locator('p.unseen').all_inner_texts() == ['Alice' + greedy('Alice', 20).text] * 2
        )
        generated = [each for each in asked if 'max_tokens' in each]
        assert [each.pop('model') for each in generated] == ['tiny', 'other']
        assert generated[0] == generated[1]
        columns = [page.get_by_role('listbox').nth(at) for at in (0, 1)]
        boxes = [page.locator('.result').nth(at).bounding_box() for at in (0, 1)]
        assert boxes[0]['y'] == boxes[1]['y'] and boxes[0]['x'] + boxes[0]['width'] < boxes[1]['x']
        columns[1].get_by_role('option').nth(10).click()
        page.mouse.move(5, 5)
        assert panel_of(page).get_by_role('heading', name='other').is_visible()
        panel_of(page).get_by_role('button').nth(1).click()
        page.get_by_role('button', name='Continue', disabled=False).wait_for()
        first, second = page.locator('p.unseen').all_inner_texts()
        assert first == 'Alice' + greedy('Alice', 20).text and second != first
        page.get_by_role('button', name='Chat', exact=True).click()
        assert page.get_by_role('listbox').count() == 1
        assert page.get_by_role('combobox', name='Compare with').count() == 0


def test_one_model_has_nothing_to_compare_with(page):
    assert page.get_by_role('combobox', name='Compare with').count() == 0


def test_a_conversation(page, client):
    page.get_by_role('button', name='Chat', exact=True).click()
    message = page.get_by_role('textbox', name='Message')
    page.get_by_role('spinbutton', name='Tokens').fill('15')
    messages = page.get_by_role('list', name='Messages').get_by_role('listitem')

    def answer(asked):
        ids = client.ask('/tokenize', messages=asked)['tokens']
        [found] = alone(fit(), ids, SampleConfig(temperature=0.0, max_new_tokens=15))
        return found.text

    def send(text):
        message.fill(text)
        page.get_by_role('button', name='Send').click()
        text_of(page)

    send('Why <b>?')
    asked = [{'role': 'user', 'content': 'Why <b>?'}]
    first = answer(asked)
    messages.nth(1).wait_for()
    assert messages.all_text_contents() == ['YouWhy <b>?', f'Model{first}']
    assert message.input_value() == ''
    asked += [{'role': 'assistant', 'content': first}, {'role': 'user', 'content': 'And?'}]
    send('And?')
    messages.nth(3).wait_for()
    assert messages.nth(3).text_content() == f'Model{answer(asked)}'
    assert len([1 for each in pieces_of(page).all() if each.get_attribute('style')]) == 15

    page.get_by_role('spinbutton', name='Temperature').fill('1.5')
    page.get_by_role('button', name='Regenerate').click()
    text_of(page)
    until(lambda: messages.count() == 4)
    other = messages.nth(3).text_content()
    assert other != f'Model{answer(asked)}'
    assert text_of(page).endswith(other.removeprefix('Model'))
    given = client.ask('/tokenize', messages=asked)['tokens']
    assert page.locator('.piece.given').count() == len(given), 'without the answer before'
    assert page.get_by_role('spinbutton', name='Seed').input_value() == '1'
    page.get_by_role('button', name='Continue').click()
    until(lambda: len(messages.nth(3).text_content()) > len(other))
    page.get_by_role('button', name='New conversation').click()
    assert messages.count() == 0 and pieces_of(page).count() == 0
    page.get_by_role('button', name='Send').click()
    page.get_by_text('write a message first').wait_for()
    page.get_by_role('button', name='Complete').click()
    assert page.get_by_role('textbox', name='Prompt').input_value() == 'Alice'


def test_the_text_is_written_again_without_the_cache(page, client):
    page.get_by_role('spinbutton', name='Temperature').fill('1')
    text = write(page, tokens=60)
    reused = client.metric('reused_tokens_total')
    page.get_by_role('button', name='off').click()
    assert text_of(page) == text
    said = page.get_by_text('ms without it: ').inner_text()
    assert said.endswith('The text is the same.')
    cached, fresh = (float(each) for each in re.findall(r'([\d.]+) ms', said))
    assert fresh > cached > 0
    assert client.metric('reused_tokens_total') == reused
    assert page.locator('.canvas g.series-0, .canvas g.series-1').count() == 2
