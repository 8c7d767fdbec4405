"""Runs that begin with the weights of another run, as a user starts and resumes them."""

import json
import shutil

import jax
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.main import main
from tests.command_line import ROOT, TINY, fingerprints, rows

STEPS = ('--config.train.num_steps=20', '--config.train.ema_decay=0')
CONFIG = 'configs/finetune.py'
STILL = '--config.optimizer.learning_rate=1e-30'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A run of ten steps, whose model has dropout."""
    workdir = tmp_path_factory.mktemp('source') / 'run'
    assert main([f'--config={TINY}', f'--workdir={workdir}', '--config.train.num_steps=10']) == 0
    return workdir


def tune(workdir, source, *arguments: str, config: str = CONFIG) -> int:
    """Goes on with the source's weights on a text that it did not see."""
    text = ROOT / 'tests/golden/alice.txt'
    given = [f'--config.data.source={text}', '--config.data.split=tail:0.3']
    if config.startswith(CONFIG):
        given += ['--config.train.num_epochs=0', '--config.train.batch_size=8']
        given += ['--config.checkpoint.save_every=10', '--config.sample.every=0']
        given += ['--config.eval.batches=2', '--config.mesh.data=1']
    arguments = [*given, *STEPS, f'--config.train.init_from={source}', *arguments]
    return main([f'--config={config}', f'--workdir={workdir}', *arguments])


def weights(workdir, step: int) -> dict:
    """The weights' fingerprints by path."""
    return {k: v for k, v in fingerprints(workdir, step).items() if k.startswith('params/')}


@pytest.mark.parametrize('mesh', [(), ('--config.mesh.fsdp=2', '--config.mesh.tensor=2')])
def test_begins_with_the_weights_bit_for_bit(mesh, source, tmp_path, capsys):
    """Steps too small for float32 leave them; architecture and tokenizer come with them."""
    assert tune(tmp_path, source, STILL, *mesh) == 0
    assert f'beginning with the weights of {source}, step 10' in capsys.readouterr().out
    assert weights(tmp_path, 20) == weights(source, 10)
    assert GPT.load(tmp_path).tokenizer.fingerprint() == GPT.load(source).tokenizer.fingerprint()
    config = json.loads((tmp_path / 'config.json').read_text())
    assert (config['model']['num_layers'], config['model']['dropouts']['residual']) == (2, 0.0)
    origin = json.loads((tmp_path / 'provenance.json').read_text())['init_from']
    assert origin['workdir'] == str(source) and origin['step'] == 10
    assert len(origin['weights']) == 64


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['', ':lora'])
def test_goes_on_exactly_without_the_source(variant, source, tmp_path, capsys):
    """The same command, and the workdir alone, after the source is gone."""
    moved, whole, resumed = (tmp_path / name for name in ('source', 'whole', 'resumed'))
    shutil.copytree(source, moved)
    assert tune(whole, moved, config=CONFIG + variant) == 0
    assert weights(whole, 20) != weights(source, 10)
    shutil.rmtree(moved)
    for again in (
        lambda: tune(resumed, moved, config=CONFIG + variant),
        lambda: main([f'--workdir={resumed}']),
    ):
        shutil.rmtree(resumed, ignore_errors=True)
        shutil.copytree(whole, resumed)
        shutil.rmtree(resumed / 'checkpoints/20')
        assert again() == 0
        assert 'resuming at step 10' in capsys.readouterr().out
        assert rows(resumed) == rows(whole)
        assert fingerprints(resumed, 20) == fingerprints(whole, 20)
    origins = [
        json.loads((workdir / 'provenance.json').read_text())['init_from']
        for workdir in (whole, resumed)
    ]
    assert origins[0] == origins[1]


@pytest.mark.slow
def test_adapters_travel_merged(source, tmp_path):
    """A LoRA run is a plain model for others, and another run's beginning."""
    tuned, folder, third = tmp_path / 'tuned', tmp_path / 'exported', tmp_path / 'third'
    assert tune(tuned, source, config=f'{CONFIG}:lora') == 0
    assert main([f'--workdir={tuned}', '--mode=export', '--format=hf', f'--out={folder}']) == 0
    merged = GPT.load(tuned).params
    exported = GPT.from_pretrained(folder).params
    table, rows = merged['embedding']['table'], GPT.load(tuned).tokenizer.vocab_size
    exported['embedding']['table'] = np.concatenate(  # what pads the table does not travel
        [exported['embedding']['table'][:rows], table[rows:]]
    )
    jax.tree.map(np.testing.assert_array_equal, exported, merged)
    assert tune(third, tuned, STILL) == 0
    jax.tree.map(np.testing.assert_array_equal, GPT.load(third).params, merged)
    query = 'params/blocks/attention/query/kernel'
    assert weights(third, 20)[query] != weights(source, 10)[query]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--config.model.num_layers=3',), 'num_layers=3 (it has 2)'),
        (('--config.model.position=rope', '--config.model.max_seq_len=64'), 'position=rope'),
        (('--config.train.init_from=/nowhere',), 'config.train.init_from=/nowhere holds no run'),
    ],
)
def test_wrong_input_is_one_line(arguments, message, source, tmp_path, capsys):
    capsys.readouterr()
    assert tune(tmp_path / 'run', source, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()


def test_weights_are_cast_to_another_param_dtype(source, tmp_path, capsys):
    """A run in bfloat16 begins with weights that were saved in float32, rounded."""
    assert tune(tmp_path, source, STILL, '--config.model.precision.params=bfloat16') == 0
    assert f'beginning with the weights of {source}, step 10' in capsys.readouterr().out
    ours, theirs = (jax.tree.leaves(GPT.load(folder).params) for folder in (tmp_path, source))
    for leaf, other in zip(ours, theirs, strict=True):
        assert leaf.dtype == 'bfloat16'
        np.testing.assert_array_equal(leaf, other.astype(leaf.dtype))
