"""μP's scales of weights and products, by table 8 of Yang et al. 2022 and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.inspector.forward import run_forward
from gpt_jax.model.config import Parametrization
from gpt_jax.model.gpt import GPT, init_params, output_table, parameter_groups
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.model.parametrization import describe_base
from gpt_jax.parameter import map_with_path
from gpt_jax.weights.export import choose_family
from tests.contracts.own_members import Tempered
from tests.model_configs import EXPERTS, LATENT, make_config

# Four times as wide as the base model, in more heads or in wider ones.
WIDE = dict(parametrization='mup', base=dict(d_model=8), d_model=32, num_heads=4)
WIDE_HEADS = WIDE | dict(base=dict(d_model=8, num_heads=4))
STANDARD = Parametrization.STANDARD
TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(1, 12)

# The growth of fan-in and fan-out, and the factor of the initial standard deviation.
MATRIX, TABLE, FIXED = (4, 4, 1 / 2), (1, 4, 1), (1, 1, 1)
INTO_FEW, FROM_FEW = (4, 1, 1 / 4), (1, 4, 1)
GROWTHS = {
    'gpt2': (
        WIDE,
        {
            'embedding/table': TABLE,
            'position/table': TABLE,
            'blocks/attention/query/kernel': MATRIX,
            'blocks/attention/query/bias': TABLE,
            'blocks/attention/value/kernel': MATRIX,
            'blocks/attention/output/kernel': MATRIX,
            'blocks/attention_norm/scale': TABLE,
            'blocks/mlp/up/kernel': MATRIX,
            'blocks/mlp/up/bias': TABLE,
            'blocks/mlp/down/kernel': MATRIX,
            'final_norm/bias': TABLE,
        },
    ),
    'wider heads': (WIDE_HEADS, {'blocks/attention/query/kernel': MATRIX}),
    'untied': (WIDE | dict(tie_embeddings=False), {'output/table': TABLE}),
    'one key/value head': (
        WIDE | dict(num_kv_heads=1, attention=dict(qk_norm='head')),
        {
            'blocks/attention/key/kernel': INTO_FEW,
            'blocks/attention/key/bias': FIXED,
            'blocks/attention/query/kernel': MATRIX,
            'blocks/attention/key_norm/scale': FIXED,
        },
    ),
    'as many key/value heads as before': (
        WIDE | dict(base=dict(d_model=8, num_kv_heads=1), num_kv_heads=1),
        {'blocks/attention/value/kernel': INTO_FEW},
    ),
    'norm of all heads': (
        WIDE | dict(attention=dict(qk_norm='full')),
        {'blocks/attention/query_norm/scale': TABLE},
    ),
    'latent': (
        WIDE | dict(attention=LATENT | dict(q_rank=10)),
        {
            'blocks/attention/kv_down/kernel': INTO_FEW,
            'blocks/attention/kv_norm/scale': FIXED,
            'blocks/attention/kv_up/kernel': FROM_FEW,
            'blocks/attention/query_up/kernel': FROM_FEW,
        },
    ),
    'differential': (
        WIDE | dict(attention='differential'),
        {
            'blocks/attention/lambda_key_1': FIXED,
            'blocks/attention/head_norm/scale': FIXED,
            'blocks/attention/output/kernel': MATRIX,
        },
    ),
    'experts': (
        WIDE | dict(mlp=EXPERTS | dict(balance='bias', shared_experts=1)),
        {
            'blocks/mlp/up': MATRIX,
            'blocks/mlp/down': MATRIX,
            'blocks/mlp/router/kernel': INTO_FEW,
            'blocks/mlp/bias': FIXED,
            'blocks/mlp/shared/up/kernel': MATRIX,
        },
    ),
}


@pytest.mark.parametrize('name', GROWTHS)
def test_growth_and_initial_scale_follow_from_the_declarations(name):
    changes, expected = GROWTHS[name]
    declared = parameter_groups(make_config(**changes)).declared
    before = parameter_groups(make_config(**changes | dict(parametrization='standard'))).declared
    for path, (inputs, outputs, factor) in expected.items():
        assert declared[path].growth == (inputs, outputs), path
        assert declared[path].std == pytest.approx(factor * before[path].std), path
    assert all(each.growth == (1, 1) for each in before.values())


def test_initial_weights_are_those_of_the_standard_model_times_the_factor():
    config = make_config(**WIDE | dict(mlp=EXPERTS))
    standard = freeze(dataclasses.replace(config, parametrization=STANDARD))
    ours, theirs = (
        nn.unbox(jax.jit(init_params, static_argnums=0)(each, jax.random.key(0)))
        for each in (config, standard)
    )

    def check(path, ours, theirs):
        factor = GROWTHS['experts'][1].get(path, GROWTHS['gpt2'][1].get(path, (1, 1, None)))[2]
        if factor is not None:
            np.testing.assert_array_equal(ours, np.float32(factor) * theirs, err_msg=path)

    map_with_path(check, ours, theirs)


def test_at_the_base_width_nothing_changes():
    standard = make_config(tie_embeddings=False, scale_embedding=True)
    base = dict(d_model=standard.d_model, num_heads=standard.num_heads)
    mup = make_config(tie_embeddings=False, scale_embedding=True, parametrization='mup', base=base)
    params = [nn.unbox(init_params(each, jax.random.key(0))) for each in (standard, mup)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    programs = []
    for config in (standard, mup):
        executed = to_executed(params[0], config, scan=False)
        run = lambda executed, c=config: GPT(c).apply({'params': executed}, TOKENS)  # noqa: E731
        programs.append(jax.jit(run).lower(executed).as_text())
    assert programs[0] == programs[1]


@pytest.fixture(scope='module')
def points():
    """Points of a wide model of each parametrization, with the same weights."""
    mup = make_config(
        **WIDE_HEADS | dict(tie_embeddings=False, scale_embedding=True, use_bias=False)
    )
    standard = freeze(dataclasses.replace(mup, parametrization=STANDARD))
    params = nn.unbox(init_params(standard, jax.random.key(0)))
    return params, mup, *(run_forward(config, params, TOKENS) for config in (mup, standard))


def test_embeddings_have_the_scale_of_the_base_model(points):
    _, _, mup, standard = points
    np.testing.assert_allclose(mup['embedding'], standard['embedding'] / 4**0.5, rtol=1e-6)


def test_scores_are_divided_by_the_width_of_a_head(points):
    _, _, mup, _ = points
    query, key = mup['blocks.0.attention.projected_query'], mup['blocks.0.attention.projected_key']
    products = np.einsum('BLHK,BSHK->BHLS', query, key)
    visible = np.tril(np.ones((12, 12), bool))
    # Of 8, as 1/sqrt(2) is the factor of heads of 2 in the base model.
    expected = products * 2**0.5 / 8
    scores = np.asarray(mup['blocks.0.attention.scores'])
    np.testing.assert_allclose(scores[..., visible], expected[..., visible], rtol=1e-5, atol=1e-7)


def test_logits_are_divided_by_the_growth_in_the_model_and_in_the_loss(points):
    params, config, mup, _ = points
    rows = np.asarray(params['output']['table'])[: config.vocab_size]
    expected = np.asarray(mup['final_norm']) @ rows.T / 4
    np.testing.assert_allclose(mup['logits'], expected, rtol=1e-5, atol=1e-6)
    table = output_table(params, config)[: config.vocab_size]
    np.testing.assert_allclose(jnp.asarray(mup['final_norm']) @ table.T, expected, atol=1e-6)


def test_scores_of_an_attention_that_is_not_ours_are_scaled_too():
    config = freeze(dataclasses.replace(make_config(**WIDE_HEADS), attention=Tempered()))
    standard = freeze(dataclasses.replace(config, parametrization=STANDARD))
    params = nn.unbox(init_params(standard, jax.random.key(0)))
    ours, theirs = (
        run_forward(each, params, TOKENS)['blocks.0.attention.query'] for each in (config, standard)
    )
    np.testing.assert_allclose(ours, theirs / 2, rtol=1e-6)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(parametrization='mup'), r'needs config\.model\.base\.d_model'),
        (dict(base=dict(d_model=12)), r'base\.num_heads has no whole value in proportion'),
        (dict(d_ff=66), r'config\.model\.base\.d_ff has no whole value .*; set it'),
        (dict(num_kv_heads=2), r'base\.num_kv_heads has no whole value'),
        (
            dict(base=dict(d_model=8, num_heads=4), attention=dict(query_pre_attn_scalar=3.0)),
            'query_pre_attn_scalar fixes the scale',
        ),
        (
            dict(base=dict(d_model=4, num_heads=4), position='rope'),
            r'the base model of config\.model\.base cannot work: .*head_dim=1 must be even',
        ),
        (dict(mlp=EXPERTS | dict(d_expert=6)), r'd_expert=6 times 1/4, .* is not whole'),
    ],
)
def test_what_has_no_base_model_is_refused(changes, message):
    defaults = {} if 'parametrization' in changes else WIDE
    with pytest.raises(UserError, match=message) as error:
        make_config(**defaults | changes)
    assert '\n' not in str(error.value)


def test_the_base_model_in_words():
    assert describe_base(make_config(**WIDE_HEADS)) == 'd_model 8, d_ff 32, 4 heads of 2'


def test_other_projects_have_no_multipliers():
    layout = dict(mlp='gelu', use_bias=True)
    assert choose_family(make_config(**layout, base=dict(d_model=8))).model_types[0] == 'gpt2'
    with pytest.raises(UserError, match=r'no config\.model\.parametrization=mup in gpt2'):
        choose_family(make_config(**WIDE | layout))


def test_random_vectors_that_grow_are_refused():
    config = make_config(**WIDE_HEADS | dict(attention='differential', head_dim=16))
    with pytest.raises(UserError, match='no rule for blocks/attention/lambda_key_1'):
        parameter_groups(config)
