"""The page in Chromium on exported models: it writes Python's text and shows its origin."""

import re
import shutil

import pytest

from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Generator
from gpt_jax.weights.web_export import export_web
from tests.accessible import LOOKS, check_accessible
from tests.chromium import serve
from tests.weights.random_source import LLAMA, bpe_tokenizer, make_model, random_params

HOSTILE = '<img src=x onerror=a> é'
PROMPT = 'The quick'
SAMPLING = {'prompt': PROMPT, 'max_new_tokens': 20, 'temperature': 0.0}
TOKENIZER = bpe_tokenizer()
CONFIG = make_model(**LLAMA | dict(vocab_size=TOKENIZER.vocab_size))


@pytest.fixture(scope='module')
def params():
    """Random, but for the end of text, which is never the likeliest."""
    params = random_params(CONFIG)
    table = params['output']['table'].at[TOKENIZER.eot_id].set(0)
    return params | {'output': {'table': table}}


@pytest.fixture(scope='module')
def generator(params):
    return Generator(CONFIG, params, TOKENIZER)


@pytest.fixture(scope='module')
def folder(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp('export')
    export_web(folder, CONFIG, params, TOKENIZER, dtype='float32', sampling=SAMPLING)
    return folder


class Page:
    """The parts of the page, by role."""

    def __init__(self, page):
        self.page = page
        self.pieces = page.get_by_role('listbox').get_by_role('option')
        self.panel = page.get_by_role('region', name='Token', exact=True)
        self.status = page.get_by_role('status')

    def press(self, name):
        self.page.get_by_role('button', name=name, exact=True).click()

    def set(self, name, value):
        self.page.get_by_role('spinbutton', name=name).fill(str(value))

    def finished(self):
        """Waits for the end; returns the text."""
        self.page.get_by_role('button', name='Continue', disabled=False).wait_for()
        return self.page.locator('p.unseen').text_content()

    def write(self):
        self.press('Generate')
        return self.finished()


@pytest.fixture
def opened_page(visit, folder):
    return lambda **options: Page(visit(folder, **options))


def python_text(generator, prompt, count=20):
    sampling = SampleConfig(temperature=0.0, max_new_tokens=count)
    [found] = generator.generate([prompt], sampling)
    return TOKENIZER.decode([*TOKENIZER.encode(prompt), *found.tokens])


def test_the_text_of_python_with_its_probabilities(opened_page, generator):
    page = opened_page()
    assert page.write() == python_text(generator, PROMPT)
    prompt = len(TOKENIZER.encode(PROMPT))
    assert page.pieces.count() == prompt + 20
    assert re.fullmatch(
        r'20 tokens, [\d,.]+ per second; the first after [\d,]+ ms', page.status.inner_text()
    )
    styles = [piece.get_attribute('style') for piece in page.pieces.all()]
    assert not any(styles[:prompt]) and all(styles[prompt:])
    assert len(set(styles[prompt:])) > 3
    page.press('Continue')
    assert page.finished() == python_text(generator, PROMPT, 40)
    page.page.get_by_role('textbox', name='Prompt').fill(HOSTILE)
    assert page.write() == python_text(generator, HOSTILE)
    assert page.page.locator('img').count() == 0


def test_a_token_shows_alternatives_to_go_on_from(opened_page, generator):
    page = opened_page()
    page.write()
    at = len(TOKENIZER.encode(PROMPT)) + 3
    page.pieces.nth(0).hover()
    assert 'of the prompt' in page.panel.inner_text()
    page.pieces.nth(at).click()
    page.page.mouse.move(5, 5)
    buttons = page.panel.get_by_role('button')
    assert buttons.count() == 10
    shares = [float(x) for x in re.findall(r'<?([\d.]+)%', page.panel.inner_text())]
    assert shares[0] == shares[1] and shares[1:] == sorted(shares[1:], reverse=True)
    assert f'token {at}, id ' in page.panel.inner_text() and 'rank 1' in page.panel.inner_text()
    before = page.pieces.all_text_contents()[:at]
    buttons.nth(2).click()
    text = page.finished()
    assert page.pieces.all_text_contents()[:at] == before
    page.pieces.nth(at).hover()
    chosen = int(re.search(r'id (\d+)', page.panel.inner_text())[1])
    assert 'rank 3' in page.panel.inner_text()
    [greedy] = generator.generate([PROMPT], SampleConfig(temperature=0.0, max_new_tokens=3))
    ids = [*TOKENIZER.encode(PROMPT), *greedy.tokens, chosen]
    [rest] = generator.generate([ids], SampleConfig(temperature=0.0, max_new_tokens=20))
    assert text == TOKENIZER.decode([*ids, *rest.tokens])


def test_attention_colours_the_tokens_that_are_read(opened_page):
    page = opened_page()
    page.write()
    page.press('attention')
    page.page.get_by_role('combobox', name='Layer').select_option('layer 2')
    page.pieces.nth(6).hover()
    page.page.get_by_text('in layer 2, mean of its heads').wait_for()
    styles = [piece.get_attribute('style') for piece in page.pieces.all()]
    assert all(styles[:7]) and not any(styles[7:])
    page.page.get_by_role('combobox', name='Head').select_option('head 1')
    page.pieces.nth(9).click()
    page.page.get_by_text('in layer 2, head 1').wait_for()
    page.page.mouse.move(5, 5)
    other = [piece.get_attribute('style') for piece in page.pieces.all()]
    assert all(other[:10]) and not any(other[10:]) and other[:7] != styles[:7]
    page.press('probability')
    assert page.pieces.last.get_attribute('style') and not page.pieces.first.get_attribute('style')


def test_the_text_is_written_again_without_the_cache(opened_page, generator):
    page = opened_page()
    page.set('Temperature', 1.5)
    page.set('Tokens', 24)
    text = page.write()
    page.page.get_by_text(re.compile(r'^[\d.]+ ms per token with the KV cache; switch')).wait_for()
    assert not page.page.locator('.canvas').is_visible()
    page.press('off')
    assert page.finished() == text
    said = page.page.get_by_text(re.compile(r'[\d.]+ ms without it: ')).inner_text()
    assert said.endswith('The text is the same.')
    assert all(float(each) > 0 for each in re.findall(r'([\d.]+) ms', said))
    timed = page.pieces.count() - len(TOKENIZER.encode(PROMPT)) - 1
    for line in ('.series-0', '.series-1'):
        page.page.locator(f'.canvas {line} circle').nth(timed - 1).wait_for()
        assert page.page.locator(f'.canvas {line} circle').count() == timed > 9
    page.set('Seed', 3)
    assert page.write() != text
    page.page.get_by_text(re.compile(r'^[\d.]+ ms per token without the KV cache.$')).wait_for()
    page.press('on')
    page.finished()
    page.page.get_by_text('The text is the same.').wait_for()
    page.set('Temperature', 0)
    page.press('off')
    page.set('Tokens', 40)
    assert page.write() == python_text(generator, PROMPT, 40)


def test_seeds_repeat_texts_and_settings_are_checked(opened_page):
    page = opened_page()
    page.set('Temperature', 1.5)
    texts = []
    for seed in (5, 6, 5):
        page.set('Seed', seed)
        texts.append(page.write())
    assert texts[0] == texts[2] != texts[1]
    page.set('Top-k', 1)
    likeliest = page.write()
    page.set('Temperature', 0)
    assert page.write() == likeliest
    page.set('Top-p', 1.5)
    page.press('Generate')
    assert page.status.inner_text().startswith('Top-p: ')


def test_a_long_text_is_stopped_and_another_begins(opened_page):
    page = opened_page()
    page.set('Tokens', 10**6)
    page.press('Generate')
    page.pieces.nth(30).wait_for()
    page.page.keyboard.press('Escape')
    page.finished()
    assert 30 < page.pieces.count() < 10**5
    page.set('Tokens', 3)
    page.write()
    assert page.pieces.count() == len(TOKENIZER.encode(PROMPT)) + 3
    page.set('Tokens', 10**6)
    page.press('Continue')
    page.pieces.nth(20).wait_for()
    page.press('Stop')
    page.finished()


def test_a_stopped_worker_rests(opened_page):
    counts = opened_page().page.evaluate(
        """async () => {
      const script = new URL('scripts/browser_backend.js', document.baseURI);
      const { BrowserBackend } = await import(script);
      const backend = new BrowserBackend(document.baseURI), aborter = new AbortController();
      const { sampling } = await backend.describe(() => {});
      const rest = { top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1, stop: [], seed: 0,
        presence_penalty: 0, frequency_penalty: 0 };
      const request = { ids: [65], sampling: { ...rest, ...sampling, max_new_tokens: 1e6 } };
      const counts = [], { signal } = aborter;
      for await (const _ of backend.generate({ ...request, signal })) {
        if (counts.push(0) === 5) aborter.abort();
      }
      await new Promise((resolve) => setTimeout(resolve, 200));
      let messages = 0;
      backend.worker.onmessage = () => { messages += 1; };
      await new Promise((resolve) => setTimeout(resolve, 300));
      return [counts.length, messages];
    }"""
    )
    assert counts == [5, 0]


def test_questions_about_attention_do_not_change_the_text(opened_page):
    plain, asked = opened_page().page.evaluate(
        """async () => {
      const script = new URL('scripts/browser_backend.js', document.baseURI);
      const { BrowserBackend } = await import(script);
      const backend = new BrowserBackend(document.baseURI), ids = [65, 66, 67, 68];
      const { sampling } = await backend.describe(() => {});
      const rest = { top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1, stop: [], seed: 0,
        presence_penalty: 0, frequency_penalty: 0 };
      const request = { ids, sampling: { ...rest, ...sampling, max_new_tokens: 60 } };
      const write = async () => {
        const found = [];
        for await (const { id, logprob } of backend.generate(request)) found.push([id, logprob]);
        return found;
      };
      const plain = await write();
      let writes = true;
      const questions = (async () => { while (writes) await backend.attention(ids, 2); })();
      const asked = await write();
      writes = false;
      await questions;
      return [plain, asked];
    }"""
    )
    assert asked == plain and len(plain) > 20


def test_the_keyboard_does_it_all(opened_page):
    page = opened_page()
    press = page.page.keyboard.press
    page.page.get_by_role('textbox', name='Prompt').focus()
    press('Control+Enter')
    page.finished()
    page.pieces.first.focus()
    for key in ('ArrowRight', 'End', 'ArrowRight', 'ArrowLeft'):
        press(key)
    last = page.pieces.count() - 2
    assert f'token {last}, id' in page.panel.inner_text()
    assert page.page.locator('.text [aria-selected=true]').count() == 1
    press('Tab')
    press('Tab')
    press('Enter')  # the second alternative
    page.finished()
    assert page.pieces.count() == last + 1 + 20
    background = lambda: page.page.evaluate('getComputedStyle(document.body).backgroundColor')  # noqa: E731
    before = background()
    page.page.locator('body').click(position={'x': 5, 'y': 5})
    press('t')
    assert background() != before


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone_scrolls_down_only(opened_page, scheme):
    phone = {'viewport': {'width': 390, 'height': 844}, 'has_touch': True, 'color_scheme': scheme}
    page = opened_page(**phone)
    page.write()
    page.pieces.nth(5).tap()
    assert 'token 5' in page.panel.inner_text()
    page.press('attention')
    assert page.page.evaluate('document.documentElement.scrollWidth') == 390
    dark = page.page.evaluate('document.documentElement.dataset.theme')
    assert dark == scheme


def test_a_page_that_cannot_start_says_so(browser, folder, tmp_path):
    """Opened as a file, or without a file of the folder: one line, with the remedy."""
    context = browser.new_context()
    page = context.new_page()
    page.goto((folder / 'index.html').as_uri())
    assert 'run “python -m http.server” in its folder' in page.get_by_role('alert').inner_text()
    context.close()
    for name in ('model.bin', 'model.json', 'scripts/worker.js', 'scripts/session.js'):
        damaged = tmp_path / name.replace('/', '-')
        shutil.copytree(folder, damaged)
        (damaged / name).unlink()
        context = browser.new_context()
        with serve(damaged) as address:
            page = context.new_page()
            page.goto(address)
            page.get_by_role('alert').wait_for()
            assert 'python -m http.server' in page.get_by_role('alert').inner_text(), name
        context.close()


def test_probability_of_the_panel_is_that_of_the_colour(opened_page):
    """A certain token is pale and an unlikely one is not: the scale is of the shown share."""
    page = opened_page()
    page.set('Temperature', 3)
    page.write()
    shares = {}
    for piece in page.pieces.all()[len(TOKENIZER.encode(PROMPT)) :]:
        piece.hover()
        shown = re.search(r'probability <?([\d.]+)%', page.panel.inner_text())[1]
        red, green, blue = map(int, re.findall(r'\d+', piece.get_attribute('style'))[:3])
        shares[float(shown)] = red + green + blue
    ordered = [shares[share] for share in sorted(shares)]
    assert ordered == sorted(ordered) and len(set(ordered)) > 2


def test_a_link_shows_the_text_with_its_colours(visit, folder):
    page = Page(visit(folder))
    text = page.write()
    styles = [piece.get_attribute('style') for piece in page.pieces.all()]
    page.press('Copy link')
    page.page.get_by_text('the link is').wait_for()
    other = Page(visit(folder, path='#' + page.page.url.partition('#')[2]))
    assert other.finished() == text
    assert [piece.get_attribute('style') for piece in other.pieces.all()] == styles


@pytest.mark.slow
@pytest.mark.parametrize('look', LOOKS)
def test_the_page_is_accessible(opened_page, look):
    page = opened_page(**look)
    page.set('Temperature', 1.5)
    page.write()
    page.pieces.nth(6).click()
    page.page.get_by_text('What these settings do').click()
    page.press('off')
    page.finished()
    page.page.locator('.canvas').wait_for()
    check_accessible(page.page)
