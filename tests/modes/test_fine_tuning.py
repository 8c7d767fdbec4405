"""Runs that train a part of the weights, as a user starts, resumes, measures and reads them."""

import json
import shutil

import jax
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.main import main
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.optim.lora import LoraConfig
from gpt_jax.optim.trainable import Trainable
from tests.command_line import TINY, fingerprints, rows

PARTS = {
    'lora': ('--config.lora.rank=2', '--config.lora.dropout=0.1', '--config.lora.alpha=4'),
    'frozen': ("--config.train.frozen=('embedding/.*', 'blocks/attention/.*')",),
}


def train(workdir, part: str) -> None:
    assert main([f'--config={TINY}', f'--workdir={workdir}', *PARTS[part]]) == 0


@pytest.fixture(scope='module')
def adapted(tmp_path_factory):
    """A finished run with adapters, which tests only read."""
    workdir = tmp_path_factory.mktemp('adapted') / 'run'
    train(workdir, 'lora')
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize('part', PARTS)
def test_a_run_goes_on_exactly_and_is_read_as_a_whole_model(part, tmp_path, capsys, request):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    if part == 'lora':
        shutil.copytree(request.getfixturevalue('adapted'), whole)
    else:
        train(whole, part)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / 'checkpoints' / '40')  # as if it had been killed after step 30
    capsys.readouterr()
    train(resumed, part)
    output = capsys.readouterr().out
    assert 'resuming at step 30' in output and 'trained  ' in output
    assert rows(resumed) == rows(whole)
    assert fingerprints(resumed, 40) == fingerprints(whole, 40)
    base = {name: leaf for name, leaf in fingerprints(whole, 30).items() if name[:5] == 'base/'}
    assert base and base.items() <= fingerprints(whole, 40).items()

    assert main([f'--workdir={whole}', '--mode=evaluate']) == 0
    measured = json.loads((whole / 'eval.json').read_text())
    gpt = GPT.load(whole)
    text = (whole / 'validation.txt').write_text('Alice was beginning to get very tired.' * 9)
    assert text and gpt.evaluate(whole / 'validation.txt').loss < 6
    assert measured['loss'] < 4.2  # below the uniform guess of this vocabulary
    arguments = ['--mode=generate', '--prompt=Alice', '--max_new_tokens=4', '--weights=ema']
    assert main([f'--workdir={whole}', *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith('Alice')


def test_loaded_weights_have_the_adapters_in_them(adapted):
    gpt = GPT.load(adapted)
    assert gpt.config.lora.rank == 0  # what it saves is a whole model
    groups = parameter_groups(gpt.config.model)
    trainable = Trainable(lora=LoraConfig(rank=2, alpha=4.0), groups=groups)
    adapters, base = jax.eval_shape(trainable.split, gpt.params, jax.random.key(0))
    with Checkpointer(adapted / 'checkpoints', read_only=True) as checkpointer:
        items = checkpointer.restore({'params': adapters, 'base': base}).items
    merged = trainable.join(items['params'], items['base'])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), gpt.params, merged
    )
    query = [tree['blocks']['attention']['query']['kernel'] for tree in (merged, items['base'])]
    assert not np.array_equal(*query)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('--config.lora.rank=-1', 'config.lora.rank=-1 must be a whole number from 0'),
        ("--config.train.frozen=('blok/.*',)", "config.train.frozen: 'blok/.*' matches none of"),
    ],
)
def test_wrong_input_is_one_line(override, message, tmp_path, capsys):
    assert main([f'--config={TINY}', f'--workdir={tmp_path / "run"}', override]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
