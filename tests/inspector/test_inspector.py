"""Points of a model: read, changed and differentiated; and free when nobody looks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.errors import UserError
from gpt_jax.inspector import Change, add, mean, replace, zero
from gpt_jax.inspector.analyses import ANALYSES
from gpt_jax.inspector.forward import forward
from gpt_jax.inspector.points import ONCE, TRANSFORMER_LENS, resolve
from gpt_jax.inspector.survey import survey
from gpt_jax.model.gpt import GPT as Network
from gpt_jax.model.gpt import init_params
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.model.taps import Tapped
from tests.inspector import architectures
from tests.inspector.architectures import VARIATIONS
from tests.model_configs import make_config

TEXT = 'Once upon a time'


@pytest.fixture(scope='module')
def gpt():
    return GPT(
        vocab_size=300,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        d_model=32,
        d_ff=48,
        max_seq_len=32,
        position='rope',
        mlp='swiglu',
        norm='rmsnorm',
        init={'std': 0.2},
    )


@pytest.fixture(scope='module')
def seen(gpt):
    return gpt.inspect(TEXT)


def test_points_have_the_values_of_the_model(gpt, seen):
    logits = gpt.apply([list(seen.tokens)])[0]
    np.testing.assert_allclose(seen.logits.values, logits, atol=1e-5)
    weights = seen['attention.weights']
    assert weights.dims == ('layer', 'head', 'position', 'source')
    np.testing.assert_allclose(weights.values.sum(-1), 1, atol=1e-6)
    assert not np.triu(weights.values, 1).any()
    before = seen['residual_before'].values
    np.testing.assert_array_equal(before[0], seen['embedding'].values)
    np.testing.assert_array_equal(before[1:], seen['residual_after'].values[:-1])
    written = seen['attention_output'].values + seen['mlp_output'].values
    np.testing.assert_allclose(before + written, seen['residual_after'].values, atol=1e-5)


def test_scores_weights_and_heads_follow_from_one_another(seen):
    layer = {name: seen[f'blocks.1.attention.{name}'].values for name in ('scores', 'weights')}
    softmax = jax.nn.softmax(layer['scores'], -1)
    np.testing.assert_allclose(layer['weights'], softmax, atol=1e-6)
    query, key = (seen[f'blocks.1.attention.{name}'].values for name in ('query', 'key'))
    scores = np.einsum('LHK,SHK->HLS', query, key.repeat(2, 1)) * query.shape[-1] ** -0.5
    visible = np.tril(np.ones(scores.shape[1:], bool))
    np.testing.assert_allclose(layer['scores'][:, visible], scores[:, visible], atol=1e-5)
    value = seen['blocks.1.attention.value'].values.repeat(2, 1)
    heads = np.einsum('HLS,SHK->LHK', layer['weights'], value)
    np.testing.assert_allclose(seen['blocks.1.attention.heads'].values, heads, atol=1e-5)


def test_names_of_transformer_lens(seen):
    for ours, theirs in TRANSFORMER_LENS.items():
        assert resolve(theirs) == ours
        where = theirs if ours in ONCE else f'blocks.2.{theirs}'
        np.testing.assert_array_equal(seen[where].values, _last(seen[ours]))


def _last(array):
    return array.sel(layer=2).values if 'layer' in array.dims else array.values


def test_an_edit_changes_a_point_and_what_follows(gpt, seen):
    after = gpt.run(TEXT, [zero('attention.heads', layer=1, head=[0, -1])])
    heads = after['blocks.1.attention.heads']
    assert not heads.sel(head=[0, 3]).values.any()
    same = seen['blocks.1.attention.heads'].sel(head=[1, 2]).values
    np.testing.assert_array_equal(heads.sel(head=[1, 2]).values, same)
    assert np.abs(after.logits.values - seen.logits.values).max() > 1e-3
    later = gpt.run(TEXT, [zero('attn.hook_z', layer=1, position=slice(5, None))])
    changed = np.abs(later.logits.values - seen.logits.values).max(-1) > 1e-5
    assert changed.tolist() == [False] * 5 + [True] * (len(seen.tokens) - 5)


def test_edits_of_scores_and_of_weights(gpt, seen):
    """Their heads are two dimensions in the model, and one here."""
    uniform = gpt.run(TEXT, [zero('attention.scores', layer=0, head=3)])
    weights = uniform['blocks.0.attention.weights'].values
    np.testing.assert_allclose(weights[3], 1 / len(seen.tokens), atol=1e-6)
    np.testing.assert_array_equal(weights[:3], seen['blocks.0.attention.weights'].values[:3])


def test_mean_is_that_of_the_text(gpt, seen):
    after = gpt.run(TEXT, [mean('mlp.hidden', layer=2, neuron=7)])['blocks.2.mlp.hidden'].values
    before = seen['blocks.2.mlp.hidden'].values
    np.testing.assert_allclose(after[:, 7], before[:, 7].mean(), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(after, 7, 1), np.delete(before, 7, 1))


def test_replacing_all_of_a_layer_gives_the_other_text(gpt):
    other = gpt.inspect('Twice under a hat'[: len(TEXT)])
    patched = gpt.run(TEXT, [replace('residual_after', other, layer=1)])
    np.testing.assert_array_equal(patched.logits.values, other.logits.values)
    part = gpt.run(TEXT, [replace('residual_after', other, layer=0, position=3)])
    np.testing.assert_array_equal(
        part['blocks.1.residual_before'].values[3], other['blocks.1.residual_before'].values[3]
    )


def test_adding_a_vector_in_the_order_of_the_edits(gpt, seen):
    vector = np.arange(32.0)
    edits = [zero('residual_after', layer=0, position=2)]
    edits += [add('residual_after', vector, layer=0, position=2)]
    after = gpt.run(TEXT, edits)['blocks.0.residual_after'].values
    np.testing.assert_allclose(after[2], vector, rtol=1e-6)
    np.testing.assert_array_equal(after[3], seen['blocks.0.residual_after'].values[3])


def test_gradients_are_those_of_differences(gpt, seen):
    token = 42
    gradients = gpt.gradients(TEXT, lambda logits: logits[-1, token], points=['mlp_output'])
    assert list(gradients) == [f'blocks.{layer}.mlp_output' for layer in range(3)]
    direction = np.random.default_rng(0).normal(size=32).astype(np.float32)
    for layer in range(3):
        ends = [
            gpt.run(TEXT, [add('mlp_output', sign * 1e-2 * direction, layer=layer, position=-2)])
            for sign in (1, -1)
        ]
        up, down = (end.logits.values[-1, token] for end in ends)
        slope = gradients[f'blocks.{layer}.mlp_output'].values[-2] @ direction
        assert slope == pytest.approx((up - down) / 2e-2, rel=2e-2, abs=1e-3)


def test_chosen_points_alone_are_kept(gpt, seen):
    part = gpt.inspect(list(seen.tokens), points=['residual_after', 'blocks.0.mlp.hidden'])
    assert len(part) == 4
    np.testing.assert_array_equal(part['residual_after'].values, seen['residual_after'].values)
    with pytest.raises(UserError, match="attention.weights was not captured; add 'attention.w"):
        part['attention.weights']


def test_one_program_for_many_changes(gpt, seen):
    """The forward pass works under vmap: every head ablated at once."""
    name, params, config = 'blocks.1.attention.heads', gpt.params, gpt.config.model
    tokens = jnp.asarray([seen.tokens])

    def logits(keep_H):
        changes = {name: [Change(mask=~keep_H[:, None])]}
        return forward(config, params, tokens, changes, points=frozenset({'logits'}))['logits'][0]

    each = jax.jit(jax.vmap(logits))(~jnp.eye(4, dtype=bool))
    for head in range(4):
        alone = gpt.run(TEXT, [zero('attention.heads', layer=1, head=head)]).logits.values
        np.testing.assert_allclose(each[head], alone, atol=1e-5)


WRONG = {
    'a point': (lambda gpt: gpt.inspect(TEXT, points=['attention.weigths']), 'attention.weights?'),
    'a layer': (lambda gpt: gpt.inspect(TEXT)['blocks.3.mlp_input'], 'layers 0 to 2'),
    'a head': (lambda gpt: gpt.run(TEXT, [zero('attn.hook_z', head=4)]), 'there are 0 to 3'),
    'a fraction': (lambda gpt: gpt.run(TEXT, [zero('attn.hook_z', head=0.5)]), 'whole number'),
    'a layer of an edit': (lambda gpt: gpt.run(TEXT, [zero('mlp_input', layer=3)]), '0 to 2'),
    'a dimension': (
        lambda gpt: gpt.run(TEXT, [zero('mlp.hidden', head=0)]),
        "no dimension 'head'; it has position, neuron",
    ),
    'a value': (
        lambda gpt: gpt.run(TEXT, [add('embedding', np.ones(5))]),
        'does not fit embedding',
    ),
    'another text': (
        lambda gpt: gpt.run(TEXT, [replace('mlp_input', gpt.inspect('A'), layer=0)]),
        'does not fit blocks.0.mlp_input',
    ),
    'the length': (lambda gpt: gpt.inspect('a' * 33), '33 tokens, and the context'),
    'a token': (lambda gpt: gpt.inspect([1, 300]), 'token 300 is not one of the 300'),
    'no token': (lambda gpt: gpt.inspect([]), 'no tokens'),
    'no name': (lambda gpt: gpt.inspect(TEXT, points=[3]), 'such as attention.weights, and not 3'),
    'a name of TransformerLens': (
        lambda gpt: gpt.inspect(TEXT, points=['blocks.1.attn.hook_patern']),
        'did you mean blocks.1.attn.hook_pattern',
    ),
    'a layer of a point outside them': (
        lambda gpt: gpt.run(TEXT, [zero('logits', layer=0)]),
        'logits is one point; leave out layer=0',
    ),
    'a single edit': (lambda gpt: gpt.run(TEXT, zero('logits')), 'edits must be a list'),
    'a value that is none': (
        lambda gpt: gpt.run(TEXT, [add('mlp_output', None)]),
        'must be numbers, and not None',
    ),
    'an analysis': (
        lambda gpt: survey(gpt.inspector, TEXT, names=['lnes']),
        'names=lnes is not one; did you mean lens?',
    ),
    'no neurons': (
        lambda gpt: ANALYSES['neurons'].run(gpt.inspector, TEXT, count=0),
        'count=0 and examples=10 must be at least 1',
    ),
    'several numbers': (lambda gpt: gpt.gradients(TEXT, lambda logits: logits), 'shape'),
}


def test_layers_are_a_slice(gpt):
    some = gpt.run(TEXT, [zero('mlp_output', layer=slice(1, None))], points=['mlp_output'])
    assert [values.any() for values in some['mlp_output'].values] == [True] + [False] * (
        gpt.config.model.num_layers - 1
    )


@pytest.mark.parametrize('name', WRONG)
def test_wrong_input_is_one_line(gpt, name):
    call, message = WRONG[name]
    with pytest.raises(UserError) as error:
        call(gpt)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', VARIATIONS)
def test_every_architecture_is_seen(name):
    inspector, seen = architectures.make_inspector(name), architectures.inspect(name)
    config = inspector.config
    executed = to_executed(inspector.params, config, scan=False)
    tokens = jnp.asarray([architectures.TOKENS])
    expected = jax.jit(Network(config).apply)({'params': executed}, tokens)[0][0]
    np.testing.assert_allclose(seen.logits.values, expected, atol=1e-4)
    for layer in range(config.num_layers):
        assert f'blocks.{layer}.attention.weights' in seen
        assert f'blocks.{layer}.attention.heads' in seen


@pytest.mark.parametrize('name', ['llama', 'differential', 'experts'])
def test_points_cost_nothing(name, monkeypatch):
    """The program of a gradient is the same with a function in place of flax's method."""
    config = make_config(**VARIATIONS[name])
    draw = lambda key: to_executed(nn.unbox(init_params(config, key)), config, scan=False)  # noqa: E731
    params = jax.eval_shape(draw, jax.random.key(0))
    tokens = jnp.zeros((2, 9), jnp.int32)

    def program():
        loss = lambda p: Network(config).apply({'params': p}, tokens)[0].sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params).as_text()

    with_points = program()
    monkeypatch.setattr(Tapped, 'tap', staticmethod(lambda name, x, dims='BLD': x))
    assert program() == with_points
