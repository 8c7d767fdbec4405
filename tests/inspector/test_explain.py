"""The walk through the network: its numbers are the model's, its places are in the source."""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax import GPT
from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inspector import Inspector
from gpt_jax.inspector.explain import WIDTH, explain
from gpt_jax.main import main
from gpt_jax.model.gpt import init_params
from gpt_jax.model.mlp.base import BaseMLP
from gpt_jax.tokenizer.byte import ByteTokenizer
from tests.contracts.own_members import Scaled
from tests.model_configs import EXPERTS, LATENT, make_config

ROOT = pathlib.Path(__file__).parents[2]
SIZES = dict(vocab_size=260, num_layers=2, num_heads=4, d_model=32, max_seq_len=16)
TEXT = 'a cat, a dog'


def make_inspector(**changes):
    own = {name: changes.pop(name) for name in [*changes] if isinstance(changes[name], BaseMLP)}
    config = dataclasses.replace(make_config(**SIZES | changes), **own)
    params = nn.unbox(init_params(config, jax.random.key(0)))
    noise = lambda path, x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    return Inspector(config, jax.tree_util.tree_map_with_path(noise, params), ByteTokenizer())


VARIATIONS = {
    'gpt2': {},
    'llama': dict(position='rope', norm='rmsnorm', mlp='swiglu', num_kv_heads=2, use_bias=False),
    'norm of queries': dict(position='rope', attention=dict(qk_norm='full'), num_kv_heads=2),
    'sandwich, caps, alibi': dict(
        norm_placement='sandwich', attention_soft_cap=3.0, position='alibi', output_soft_cap=3.0
    ),
    'post-norm, window, sinusoidal': dict(
        norm_placement='post', window_pattern=(3, 0), position='sinusoidal', final_norm=False
    ),
    'parallel, no position': dict(
        parallel_residual='one_norm', position='none', tie_embeddings=False, scale_embedding=True
    ),
    'latent': dict(attention=LATENT, position='rope', num_kv_heads=0),
    'differential': dict(attention='differential', position='rope', num_kv_heads=2),
    'experts': dict(
        mlp=EXPERTS | dict(balance='bias', scores='sigmoid', shared_experts=1, gate_scale=2.0),
        position='rope',
        rope=dict(fraction=0.5),
        norm_zero_centered=True,
    ),
    'mup': dict(
        parametrization='mup',
        base=dict(d_model=16, num_heads=4),
        position='rope',
        scale_embedding=True,
    ),
    'attention only': dict(mlp='none', position='rope'),
    'attention only in some layers, parallel': dict(
        layer_kinds=({}, {'mlp': 'none'}), parallel_residual='two_norms'
    ),
    'an MLP of its own': dict(mlp=Scaled()),
}


@pytest.mark.parametrize('name', VARIATIONS)
def test_every_check_holds(name):
    explanation = explain(
        make_inspector(**VARIATIONS[name]), TEXT, token=-2, layer=1, head=3, sampling=SampleConfig()
    )
    checks = [check for step in explanation.steps for check in step.checks]
    assert len(checks) >= 6
    for check in checks:
        np.testing.assert_allclose(check.computed, check.expected, rtol=2e-4, atol=2e-5)
    lines = explanation.lines()
    assert not [line for _, line in lines if len(line) > WIDTH]
    assert not any('nan' in line for _, line in lines)
    check_places(explanation)


def check_places(explanation):
    """Every step names code, which is where it says."""
    for step in explanation.steps:
        assert step.places, step.title
        for place in step.places:
            path, line, name = re.fullmatch(r'(\S+):(\d+) (\S+)', place).groups()
            source = (ROOT / path).read_text(encoding='utf-8').splitlines()[int(line) - 1 :]
            first = next(each for each in source if not each.strip().startswith('@'))
            assert re.match(rf'\s*(class|def) {name.rpartition(".")[2]}\b', first), place


def test_numbers_are_those_of_the_points():
    inspector = make_inspector()
    seen = inspector.inspect(TEXT)
    explanation = explain(inspector, TEXT, token=5, layer=1, head=2)
    steps = {step.title: step for step in explanation.steps}
    weights = seen['blocks.1.attention.weights'].sel(head=2, position=5).values
    shown = steps['Layer 1, head 2: scores and weights'].lines
    best = int(weights.argmax())
    assert shown[1].startswith(f'{best} ')
    assert f'{weights[best]:.4f}' in shown[1]
    probabilities = jax.nn.softmax(seen.logits.sel(position=5).values)
    likeliest = int(probabilities.argmax())
    line = steps['Logits and probabilities of the next token'].lines[1]
    assert line.startswith(f'{likeliest} ')
    assert line.endswith(f'{probabilities[likeliest]:.2%}')


def test_the_mode(tmp_path, capsys):
    GPT(**SIZES).save(tmp_path)
    words = ['--workdir', str(tmp_path), '--mode', 'explain', '--prompt', TEXT]
    assert main([*words, '--layer', '1', '--token', '3']) == 0
    output = capsys.readouterr().out
    assert '\033' not in output  # this is no terminal
    assert 'Layer 1: norm before the attention' in output
    assert "The walk follows token 3, 'a'" in ' '.join(output.split())
    assert 'this run' in output
    assert main(words[:-2]) == 2
    assert 'needs --prompt' in capsys.readouterr().err


@pytest.mark.parametrize('wrong', [dict(token=12), dict(layer=2), dict(head=-5)])
def test_wrong_indices(wrong):
    [name] = wrong
    with pytest.raises(UserError, match=f'{name}=-?\\d+ is out of range; there are 0 to'):
        explain(make_inspector(), TEXT, **wrong)
