"""Weights in and out by the command line, on one process and on several; wrong input."""

import os
import shutil

import pytest
import safetensors.numpy

from gpt_jax import files
from gpt_jax.checkpoint.manifest import read_document
from tests.command_line import run
from tests.pod import run_pod
from tests.weights.random_source import LLAMA, write_folder


def tensors(folder) -> dict[str, bytes]:
    """The bits of every tensor."""
    stored = safetensors.numpy.load_file(folder / 'model.safetensors')
    return {name: tensor.tobytes() for name, tensor in stored.items()}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A folder of transformers."""
    folder = tmp_path_factory.mktemp('source')
    write_folder(folder, **LLAMA)
    return folder


@pytest.fixture(scope='module')
def workdir(source, tmp_path_factory):
    """A run made of it."""
    workdir = tmp_path_factory.mktemp('run') / 'run'
    output = run('--mode=import_weights', f'--source={source}', f'--workdir={workdir}')
    assert f'{workdir}, from {source}' in output
    return workdir


def test_in_and_out(source, workdir, tmp_path):
    out = tmp_path / 'out'
    output = run('--mode=export', f'--workdir={workdir}', f'--out={out}')
    assert f'{out} ({workdir}, raw weights of step 0): model.safetensors' in output
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in source.iterdir()
    )
    assert tensors(out) == tensors(source)
    assert files.read_json(out / 'config.json') == files.read_json(source / 'config.json')
    assert files.read_json(out / 'tokenizer.json') == files.read_json(source / 'tokenizer.json')
    refused = run('--mode=export', f'--workdir={workdir}', f'--out={out}', status=2)
    assert f'--out={out} is not empty; name a new folder' in refused


def test_credits_and_sampling_settings_travel(source, tmp_path):
    stated = tmp_path / 'stated'
    shutil.copytree(source, stated)
    (stated / 'README.md').write_text('---\nlicense: mit\nmodel_name: Foxes\n---\n')
    sampling = {'do_sample': True, 'temperature': 0.5, 'top_k': 7, 'min_p': 'much'}
    files.write_json(stated / 'generation_config.json', sampling)
    workdir, out = tmp_path / 'run', tmp_path / 'out'
    output = run('--mode=import_weights', f'--source={stated}', f'--workdir={workdir}',
                 '--config.sample.top_k=9')  # fmt: skip
    assert f"{stated}: ignoring its sampling setting min_p='much'" in output
    sample = files.read_json(workdir / 'config.json')['sample']
    assert (sample['temperature'], sample['top_k'], sample['min_p']) == (0.5, 9, 0.0)
    run('--mode=export', f'--workdir={workdir}', f'--out={out}', '--config.sample.temperature=0.25')
    card = (out / 'README.md').read_text()
    assert '\nlicense: mit\n' in card and '\n# Foxes\n' in card
    generation = files.read_json(out / 'generation_config.json')
    assert (generation['temperature'], generation['top_k']) == (0.25, 9)


def test_an_imported_run_is_evaluated_wherever_it_lies(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / 'run')
    refused = run('--mode=evaluate', f'--workdir={workdir}', status=2)
    assert 'holds weights from elsewhere, and no data to measure them on: give --text' in refused
    text = tmp_path / 'text.txt'
    text.write_text('the quick brown fox. ' * 100)
    data = ['--config.data.corpus=text', f'--config.data.source={text}']
    data += ['--config.data.split=tail:0.5', f'--config.data.cache_dir={tmp_path / "cache"}']
    given = files.read_json(workdir / 'config.json')['tokenizer']['path']
    for moved in (str(tmp_path / 'gone'), given):
        config = files.read_json(tmp_path / 'run' / 'config.json')
        config['tokenizer']['path'] = moved
        files.write_json(tmp_path / 'run' / 'config.json', config)
        output = run('--mode=evaluate', f'--workdir={tmp_path / "run"}', *data)
        assert 'validation split' in output and 'perplexity' in output


def test_bfloat16_out_and_in_again(workdir, tmp_path):
    out = tmp_path / 'out'
    run('--mode=export', f'--workdir={workdir}', f'--out={out}', '--dtype=bfloat16')
    assert files.read_json(out / 'config.json')['dtype'] == 'bfloat16'
    again = tmp_path / 'again'
    flags = (f'--source={out}', f'--workdir={again}', '--config.model.precision.params=bfloat16')
    assert '(bfloat16)' in run('--mode=import_weights', *flags)
    run('--mode=export', f'--workdir={again}', f'--out={tmp_path / "out2"}', '--format=hf')
    assert tensors(tmp_path / 'out2') == tensors(out)


@pytest.mark.slow
def test_several_processes(source, workdir, tmp_path):
    """Four devices of two processes hold a part each; the files are those of one device."""
    split = ('--config.mesh.fsdp=2', '--config.mesh.tensor=2')
    made = tmp_path / 'run'
    flags = ('--mode=import_weights', f'--source={source}', f'--workdir={made}', *split)
    output = run_pod('2x2', *flags)
    assert output.count('See it write') == 1
    for name in ('config.json', 'checkpoints'):
        assert (made / name).exists()
    assert (
        read_document(made / 'checkpoints', 0)['leaves']
        == (read_document(workdir / 'checkpoints', 0)['leaves'])
    )
    run_pod('2x2', '--mode=export', f'--workdir={made}', f'--out={tmp_path / "out"}', *split)
    assert tensors(tmp_path / 'out') == tensors(source)


REFUSED = {
    'no source': ((), 'needs --source FILE, FOLDER or NAME'),
    'nothing there': (('--source=./nothing',), 'nothing does not exist'),
    'what the source decides': (
        ('--source={source}', '--config.model.num_layers=7'),
        'config.model.num_layers is decided by',
    ),
    'another tokenizer': (
        ('--source={source}', '--config.tokenizer.kind=bpe', '--config.tokenizer.path={large}'),
        'has 300 tokens, its tokenizer 301; name the right one',
    ),
}


@pytest.mark.parametrize(('flags', 'message'), REFUSED.values(), ids=REFUSED)
def test_refused(flags, message, source, tmp_path):
    large = tmp_path / 'tokenizer.json'
    vocab = {chr(0x4E00 + i): i for i in range(301)} | {'</s>': 3}
    vocab.pop(chr(0x4E03))
    added = [
        {'id': 3, 'content': '</s>', 'special': True, 'normalized': False, 'single_word': False}
        | {'lstrip': False, 'rstrip': False}
    ]
    files.write_json(
        large,
        {
            'version': '1.0',
            'added_tokens': added,
            'model': {'type': 'BPE', 'vocab': vocab, 'merges': []},
        },
    )
    flags = [flag.format(source=source, large=large) for flag in flags]
    output = run('--mode=import_weights', f'--workdir={tmp_path / "run"}', *flags, status=2)
    [line] = output.strip().splitlines()
    assert line.startswith('error: ') and message in line
    assert not (tmp_path / 'run').exists()


def test_a_run_is_not_replaced_unasked(source, workdir):
    before = os.listdir(workdir / 'checkpoints')
    flags = ('--mode=import_weights', f'--source={source}', f'--workdir={workdir}')
    assert 'holds a run already' in run(*flags, status=2)
    assert os.listdir(workdir / 'checkpoints') == before
    run(*flags, '--fresh')


def test_formats_that_cannot_hold_it(workdir, tmp_path):
    flags = ('--mode=export', f'--workdir={workdir}')
    assert 'needs --out DIR' in run(*flags, status=2)
    out = f'--out={tmp_path / "out"}'
    assert "no format 'onnx' to export to" in run(*flags, out, '--format=onnx', status=2)
    assert not (tmp_path / 'out').exists()
