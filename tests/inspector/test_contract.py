"""Every analysis runs on every architecture, or says in one line why it does not."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.inspector import NamedArray
from gpt_jax.inspector.analyses import ANALYSES
from gpt_jax.inspector.forward import Start, forward
from tests.inspector.architectures import TOKENS, VARIATIONS, inspect, make_inspector

AGAINST = (7, *TOKENS[1:])  # the text to patch from; of one token: its first
# Architectures to which an analysis does not apply, with a part of the reason.
OBSTACLES = {
    ('attribution', 'post-norm, windows'): 'norm_placement=post',
    ('neurons', 'experts'): 'no layer has a dense MLP; the neurons of experts',
    ('neurons', 'attention only'): 'no layer has a dense MLP',
}


def extra_of(name, length=None):
    """Arguments that an analysis needs besides the text."""
    return {'against': AGAINST[:length], 'branches': True} if name == 'patching' else {}


def check_finite(value):
    """Checks that a value is JSON or NamedArrays of finite numbers; returns it as JSON."""
    if isinstance(value, NamedArray):
        assert value.values.ndim == len(value.dims)
        assert value.values.dtype.kind in 'iuf'
        assert np.isfinite(value.values).all()
        return None
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return {key: check_finite(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [check_finite(each) for each in value]
    return value


@pytest.mark.parametrize('architecture', VARIATIONS)
@pytest.mark.parametrize('name', ANALYSES)
def test_every_analysis_on_every_architecture(name, architecture):
    analysis, inspector = ANALYSES[name], make_inspector(architecture)
    reason = analysis.obstacle(inspector)
    expected = OBSTACLES.get((name, architecture), '')
    assert bool(reason) == bool(expected), reason
    inspection, extra = inspect(architecture), extra_of(name)
    if reason:
        assert expected in reason
        assert '\n' not in reason
        with pytest.raises(UserError, match=expected):
            analysis.run(inspector, TOKENS, inspection=inspection, **extra)
        return
    result = analysis.run(inspector, TOKENS, inspection=inspection, **extra)
    assert result.tokens == TOKENS
    assert len(result.texts) == len(TOKENS)
    heading, *rows = result.rows()
    assert rows
    for row in (heading, *rows):
        assert len(row) == len(heading)
        assert all(isinstance(cell, str) for cell in row)
    json.dumps(check_finite(result.data()), allow_nan=False)


@pytest.mark.parametrize('architecture', VARIATIONS)
def test_a_pass_that_starts_at_a_layer_gives_the_logits_of_a_whole_one(architecture):
    """Of any tokens, as the residual stream is given."""
    inspector, seen = make_inspector(architecture), inspect(architecture)
    config, tokens = freeze(inspector.config), jnp.zeros((1, len(TOKENS)), int)
    points = frozenset({'logits'})
    run = jax.jit(
        lambda start: forward(config, inspector.params, tokens, points=points, start=start)
    )
    for layer in range(config.num_layers):
        start = Start(layer, seen[f'blocks.{layer}.residual_before'].values)
        np.testing.assert_allclose(run(start)['logits'][0], seen.logits.values, atol=1e-4)


@pytest.mark.parametrize('name', ANALYSES)
def test_an_analysis_says_what_it_is(name):
    analysis = ANALYSES[name]
    for text in (analysis.title, analysis.about, analysis.source, analysis.pitfall):
        assert text and '\n' not in text
    assert analysis.name == name


@pytest.mark.parametrize('name', ANALYSES)
def test_alone_it_captures_what_it_needs(name, one_token):
    """Of one token, which has no next one."""
    inspector, extra = make_inspector('gpt2'), extra_of(name, 1)
    whole = ANALYSES[name].run(inspector, TOKENS[:1], inspection=one_token, **extra)
    alone = ANALYSES[name].run(inspector, TOKENS[:1], **extra)
    assert alone.rows() == whole.rows()
    json.dumps(check_finite(alone.data()), allow_nan=False)


@pytest.fixture(scope='module')
def one_token():
    return make_inspector('gpt2').inspect(TOKENS[:1])
