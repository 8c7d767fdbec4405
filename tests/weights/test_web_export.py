"""The folder for browsers: its files, what is refused before anything is written, real models."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Generator
from gpt_jax.model.weight_rounding import RoundedType, round_weights
from gpt_jax.weights.exporters import find_exporter
from tests.command_line import run
from tests.tiny_config import TEXT
from tests.weights.random_source import (
    GPT2,
    LLAMA,
    bpe_tokenizer,
    load,
    make_model,
    random_params,
)

SIZES = {'float32': 4, 'bfloat16': 2, 'float16': 2, 'int8': 1}


def export(folder, config, params, dtype='float32', **options):
    return find_exporter('web')(folder, config, params, bpe_tokenizer(), dtype=dtype, **options)


@pytest.mark.parametrize('dtype', RoundedType)
def test_files(dtype, tmp_path):
    config = make_model(**LLAMA)
    params = random_params(config)
    names = export(tmp_path, config, params, dtype, sampling={'temperature': 0.5, 'chunk': 3})
    found = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()]
    assert sorted(found) == sorted(names)
    assert {'index.html', 'model.bin', 'README.md'} < {*names}
    description = json.loads((tmp_path / 'model.json').read_text('utf-8'))
    assert description['sampling'] == {'temperature': 0.5}
    assert 'python -m http.server' in (tmp_path / 'README.md').read_text('utf-8')
    tensor = description['tensors']['layers.1.mlp.down.kernel']
    stored = np.fromfile(
        tmp_path / 'model.bin',
        np.dtype(tensor['type']) if dtype != 'bfloat16' else jnp.bfloat16,
        int(np.prod(tensor['shape'])),
        offset=tensor['offset'],
    ).astype(np.float32)
    stored = stored.reshape(tensor['shape'])
    if dtype == RoundedType.INT8:
        scales = np.fromfile(
            tmp_path / 'model.bin', np.float32, config.d_model, offset=tensor['scales']
        )
        stored = stored * scales[:, None]
    expected = round_weights(params, config, dtype)['blocks']['mlp']['down']['kernel'][1]
    np.testing.assert_allclose(stored.T, expected, rtol=1e-6)
    count = sum(int(np.prod(each['shape'])) for each in description['tensors'].values())
    assert (tmp_path / 'model.bin').stat().st_size < (SIZES[dtype] + 0.8) * count


def test_what_cannot_be_stored(tmp_path):
    config = make_model(**GPT2)
    params = random_params(config)
    with pytest.raises(UserError, match='has no --dtype q8_0; choose float32, .*int8'):
        export(tmp_path, config, params, 'q8_0')
    table = params['embedding']['table'].at[3, 3].set(1e6)
    with pytest.raises(UserError, match=r'embedding.table has numbers beyond float16; choose'):
        export(tmp_path, config, params | {'embedding': {'table': table}}, 'float16')
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_is_replaced_and_other_files_are_not(tmp_path):
    gpt = GPT(vocab_size=257, num_layers=1, num_heads=1, d_model=8, max_seq_len=8)
    gpt.export(tmp_path, format='web')
    gpt.export(tmp_path, format='web')
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='is not empty .it has notes.txt'):
        gpt.export(tmp_path, format='web')


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory):
    """A run of configs/quickstart.py on a short text."""
    workdir = tmp_path_factory.mktemp('quickstart') / 'run'
    flags = ['--config.data.corpus=text', f'--config.data.source={TEXT}', '--config.mesh.data=1']
    flags += ['--config.train.num_steps=2', '--config.eval.batches=1']
    flags += ['--config.tokenizer.vocab_size=400']
    run('--config', 'configs/quickstart.py', f'--workdir={workdir}', *flags)
    return workdir


def written_text(page):
    page.get_by_role('spinbutton', name='Temperature').fill('0')
    page.get_by_role('button', name='Generate').click()
    page.get_by_role('button', name='Continue', disabled=False).wait_for()
    return page.locator('p.unseen').text_content()


@pytest.mark.slow
def test_quickstart_from_the_command_line(quickstart, visit, tmp_path):
    """The default of 200 tokens is longer than the context of 128."""
    gpt = GPT.load(quickstart)
    sampling = SampleConfig(temperature=0.0, max_new_tokens=200)
    for dtype in ('float32', 'float16', 'int8'):
        out = tmp_path / dtype
        flags = ('--mode=export', f'--workdir={quickstart}', '--format=web', f'--out={out}')
        output = run(*flags, f'--dtype={dtype}')
        files = 'model.bin, index.html, style.css, scripts/, README.md, model.json'
        assert f'{out} ({quickstart}, raw weights of step 2): {files}' in output
        assert json.loads((out / 'model.json').read_text())['name'] == quickstart.name
        weights = round_weights(gpt.params, gpt.config.model, dtype)
        generator = Generator(gpt.config.model, weights, gpt.tokenizer)
        [expected] = generator.generate(['def '], sampling)
        assert written_text(visit(out)) == 'def ' + expected.text
    assert f'--out={out} is not empty; name a new folder' in run(*flags, status=2)
    refused = run(*flags[:3], f'--out={tmp_path / "q8"}', '--dtype=q8_0', status=2)
    assert '--format web has no --dtype q8_0; choose float32' in refused
    assert not (tmp_path / 'q8').exists()


@pytest.mark.slow
def test_stories(shared_data, visit, tmp_path):
    """The published text of the trained model, whatever the type of its weights but int8."""
    folder = shared_data / 'weights' / 'stories260K'
    source, params = load(folder / 'stories260K.bin')
    published = (folder / 'expected_greedy.txt').read_text('utf-8')
    for dtype in RoundedType:
        sampling = {'prompt': 'Once upon a time', 'max_new_tokens': 200, 'temperature': 0.0}
        find_exporter('web')(
            tmp_path / dtype, source.model, params, source.tokenizer, dtype=dtype, sampling=sampling
        )
        weights = round_weights(params, source.model, dtype)
        generator = Generator(source.model, weights, source.tokenizer)
        sample = SampleConfig(temperature=0.0, max_new_tokens=200)
        [expected] = generator.generate(['Once upon a time'], sample)
        text = written_text(visit(tmp_path / dtype))
        assert text == 'Once upon a time' + expected.text
        if dtype == RoundedType.FLOAT32:
            assert published.startswith(text) and len(text) > 300
