"""The network in shaders: its logits, attention and texts are those of Python and of the CPU.

Chromium runs the shaders in software (SwiftShader), as the machines of tests have no GPU.
"""

import dataclasses
import re

import numpy as np
import pytest

from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Generator
from gpt_jax.model.config import PrecisionConfig
from gpt_jax.model.weight_rounding import RoundedType, round_weights
from gpt_jax.tokenizer.byte import ByteTokenizer
from tests.chromium import launch
from tests.model_configs import make_config
from tests.web.sessions import Sessions, check_attention
from tests.web.test_model import QUICK, REFUSED, TABLE, expected_logits
from tests.weights.random_source import GPT2, load, make_model

SOFTWARE = (
    '--enable-unsafe-webgpu',
    '--enable-features=Vulkan',
    '--use-webgpu-adapter=swiftshader',
    '--use-vulkan=swiftshader',
)


@pytest.fixture(scope='module')
def browser():
    with launch(*SOFTWARE) as browser:
        yield browser


@pytest.fixture(scope='module')
def visit(visit, tmp_path_factory):
    """Skips the tests where Chromium has no adapter."""
    folder = tmp_path_factory.mktemp('empty')
    (folder / 'index.html').write_text('<!doctype html><link rel="icon" href="data:,">')
    adapter = visit(folder).evaluate('async () => Boolean(await navigator.gpu?.requestAdapter())')
    if not adapter:
        pytest.skip('this Chromium has no WebGPU adapter, not even in software')
    return visit


@pytest.fixture(scope='module')
def sessions(visit, tmp_path_factory):
    return Sessions(visit, tmp_path_factory.mktemp('exports'), backend='webgpu')


# Every branch of the shaders is in one of these.
SLOW = (
    'mlp=gelu',
    'mlp=relu',
    'no_final_norm',
    'norm_placement=post',
    'parallel_residual, one norm',
    'parallel_residual, output norms',
    'qk_norm_full',
    'together: two stacks',
)
ODD = 'head_dim'  # of 6


def mark(name):
    return [] if name in QUICK else pytest.mark.slow if name in SLOW else pytest.mark.exhaustive


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=mark(name)) for name in TABLE if name not in {*REFUSED, ODD}],
)
def test_logits(sessions, name):
    """Of a prompt of 7 at once, which is no multiple of a tile, and of 9 tokens one by one."""
    config = make_config(**TABLE[name] | dict(vocab_size=257))
    config = dataclasses.replace(config, precision=PrecisionConfig())
    params = sessions.export(name, config)
    ids = np.random.default_rng(0).integers(0, 257, 16)
    expected = expected_logits(config, params, ids)[6:]
    found = sessions.logits(name, ids, prompt=7)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=2e-5)


def test_greedy_text_of_each_type(sessions):
    """Longer than the context, from which the text goes on with its last half."""
    config, tokenizer = make_model(**GPT2 | dict(vocab_size=257)), ByteTokenizer()
    for dtype in RoundedType:
        params = sessions.export(f'gpt2 {dtype}', config, dtype=dtype)
        weights, prompt = round_weights(params, config, dtype), [*b'The quick']
        sampling = SampleConfig(temperature=0.0, max_new_tokens=28)
        [expected] = Generator(config, weights, tokenizer).generate([prompt], sampling)
        pieces = sessions.generate(f'gpt2 {dtype}', prompt, max_new_tokens=28)
        assert [piece['id'] for piece in pieces] == expected.tokens, dtype


def test_attention(sessions):
    check_attention(sessions, 'attention', num_kv_heads=2, window_pattern=(4,))


def test_what_is_cached_changes_nothing(sessions):
    sessions.export('cached', make_model(**GPT2 | dict(vocab_size=257)))
    ids = [(37 * i) % 256 for i in range(50)]
    other = [*ids[:20], 7, 8, 9]
    branches = [ids[:30], other, ids, ids[:12]]
    for reused, fresh in sessions.branches('cached', branches, attended=3):
        np.testing.assert_allclose(reused, fresh, atol=2e-5)


@pytest.mark.slow
def test_the_published_text_of_a_trained_model(sessions, shared_data):
    folder = shared_data / 'weights' / 'stories260K'
    source, params = load(folder / 'stories260K.bin')
    sessions.export('stories', source.model, source.tokenizer, params)
    prompt = [source.tokenizer.bos_id, *source.tokenizer.encode('Once upon a time')]
    pieces = sessions.generate('stories', prompt, max_new_tokens=200)
    text = 'Once upon a time' + ''.join(piece['text'] for piece in pieces)
    assert len(text) > 300 and (folder / 'expected_greedy.txt').read_text('utf-8').startswith(text)


_CHOOSE = """
async ([name, isHardware, isSlow]) => {
  const load = (script) => import(new URL(`scripts/${script}.js`, document.baseURI));
  const [{ chooseModel }, { Model }, { Weights }, { Gpu }] = await Promise.all(
    ['choose_model', 'model', 'weights', 'gpu'].map(load));
  if (isHardware) {
    Object.defineProperty(GPUAdapterInfo.prototype, 'isFallbackAdapter', { get: () => false });
  }
  if (isSlow) {
    Model.prototype.nextLogits = () => {
      for (const end = performance.now() + 800; performance.now() < end;);
    };
  }
  let opened = 0;
  const open = Gpu.open;
  Gpu.open = async (...given) => {
    const gpu = await open(...given);
    opened += Boolean(gpu);
    return gpu;
  };
  const read = async (file) => fetch(new URL(`../${name}/${file}`, document.baseURI));
  const description = await (await read('model.json')).json();
  const buffer = await (await read('model.bin')).arrayBuffer();
  const weights = new Weights(description.tensors, buffer);
  const { backend } = await chooseModel(description.model, weights);
  return [opened, backend];
}
"""


@pytest.mark.slow
def test_the_faster_one_is_chosen(visit, sessions):
    """Without measuring: the CPU for small models, and in place of software that acts as a GPU."""
    small = make_model(**GPT2 | dict(vocab_size=257))
    wide = dict(vocab_size=257, d_model=256, d_ff=1024, num_layers=3)
    sessions.export('small', small)
    sessions.export('large', make_model(**GPT2 | wide))
    for name, hardware, slow, expected in (
        ('small', True, True, [0, 'the CPU']),
        ('large', False, True, [0, 'the CPU']),
        ('large', True, False, [1, 'the CPU']),
        ('large', True, True, [1, 'WebGPU']),
    ):
        page = visit(sessions.folder, path=f'{name}/')
        assert page.evaluate(_CHOOSE, [name, hardware, slow]) == expected, (name, hardware, slow)


def test_a_model_or_a_gpu_that_cannot_go_on_is_named(visit, sessions):
    config = make_config(**TABLE[ODD] | dict(vocab_size=257))
    sessions.export('odd', config)
    page = visit(sessions.folder / 'odd', path='?backend=webgpu')
    page.get_by_role('alert').wait_for()
    said = 'WebGPU cannot run this model: its widths are no multiples of 4'
    assert page.get_by_role('alert').inner_text() == said
    sessions.export('lost', make_model(**GPT2 | dict(vocab_size=257)))
    assert sessions.lose('lost') == 'the browser took the GPU away; load this page again'


def test_the_page_names_what_runs_the_model(visit, sessions):
    """A small model runs on the CPU unless the address says otherwise; the texts are the same."""
    sessions.export('page', make_model(**GPT2 | dict(vocab_size=257)))
    texts = []
    for query, backend in (
        ('', 'the CPU'),
        ('?backend=webgpu', 'WebGPU'),
        ('?backend=cpu', 'the CPU'),
    ):
        page = visit(sessions.folder / 'page', path=query)
        page.get_by_text(re.compile(f'context of 32 tokens; runs on {backend}$')).wait_for()
        page.get_by_role('textbox', name='Prompt').fill('The quick')
        page.get_by_role('spinbutton', name='Temperature').fill('0')
        page.get_by_role('spinbutton', name='Tokens').fill('40')
        page.get_by_role('button', name='Generate', exact=True).click()
        page.get_by_role('button', name='Continue', disabled=False).wait_for()
        texts.append(page.locator('p.unseen').text_content())
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) > 20
