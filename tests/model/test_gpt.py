"""The network against plain float64 numpy, and what stands in the other files of the model."""

import base64
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig, finalize_model
from gpt_jax.model.gpt import GPT, abstract_params, init_params, output_table, parameter_groups
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.model.position import SinusoidalPosition, alibi_slopes, rope_frequencies, rotate
from gpt_jax.train.loss import LossOptions, cross_entropy
from tests.model_configs import make_config

TOKENS = np.random.default_rng(0).integers(0, 70, (2, 11))


@functools.partial(jax.jit, static_argnums=0)
def fresh(config, seed=0):
    """Parameters as `init_params` makes them."""
    return nn.unbox(init_params(config, jax.random.key(seed)))


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    """Logits of parameters in the stored layout."""
    executed = to_executed(params, model.config, scan=model.scan)
    return model.apply({'params': executed}, tokens)[0]


def disturbed(config):
    """Parameters of which none is 0 or 1 any more, so that each of them shows."""
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * draw(leaf.shape).astype(np.float32), fresh(config)
    )


def in_numpy(params):
    """The same in float64, and the blocks as a list of layers."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layers = len(params['blocks']['attention_norm']['scale'])
    blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks']) for i in range(layers)]
    return params | {'blocks': blocks}


def layer_norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p['scale'] + p['bias']


def rms_norm(x, p):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p['scale']


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(q, k, v):
    """Causal attention of [B, L, H, K], as many heads of each."""
    scores = np.einsum('blhk,bshk->bhls', q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[-2:])) > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum('bhls,bshk->blhk', weights / weights.sum(-1, keepdims=True), v)


def gpt2_attention(x, p):
    q, k, v = (
        np.einsum('bld,dhk->blhk', x, p[name]['kernel']) + p[name]['bias']
        for name in ('query', 'key', 'value')
    )
    out = np.einsum('blhk,hkd->bld', attend(q, k, v), p['output']['kernel'])
    return out + p['output']['bias']


def gpt2_mlp(x, p):
    hidden = gelu(x @ p['up']['kernel'] + p['up']['bias'])
    return hidden @ p['down']['kernel'] + p['down']['bias']


def gpt2(params, tokens):
    x = params['embedding']['table'][tokens] + params['position']['table'][: tokens.shape[1]]
    for p in params['blocks']:
        x = x + gpt2_attention(layer_norm(x, p['attention_norm']), p['attention'])
        x = x + gpt2_mlp(layer_norm(x, p['mlp_norm']), p['mlp'])
    return layer_norm(x, params['final_norm']) @ params['embedding']['table'][:70].T


def llama(params, tokens):
    x = params['embedding']['table'][tokens]
    half = params['blocks'][0]['attention']['query']['kernel'].shape[-1] // 2
    angles = np.arange(tokens.shape[1])[:, None] / 10000.0 ** (np.arange(half) / half)
    turn = np.exp(1j * angles)[:, None]  # [L, 1, K/2]

    def rope(x):
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], -1)

    for p in params['blocks']:
        h, a = rms_norm(x, p['attention_norm']), p['attention']
        q = rope(np.einsum('bld,dhk->blhk', h, a['query']['kernel']))
        k = rope(np.einsum('bld,dgk->blgk', h, a['key']['kernel']))
        v = np.einsum('bld,dgk->blgk', h, a['value']['kernel'])
        serves = q.shape[2] // k.shape[2]
        out = attend(q, k.repeat(serves, 2), v.repeat(serves, 2))
        x = x + np.einsum('blhk,hkd->bld', out, a['output']['kernel'])
        h, m = rms_norm(x, p['mlp_norm']), p['mlp']
        gate = h @ m['gate']['kernel']
        x = x + (gate / (1 + np.exp(-gate)) * (h @ m['up']['kernel'])) @ m['down']['kernel']
    return rms_norm(x, params['final_norm']) @ params['output']['table'][:70].T


def one_layer(placement):
    """A GPT-2 of one layer with its norms after the branches, or around them; no final norm."""

    def run(params, tokens):
        (p,) = params['blocks']
        x = params['embedding']['table'][tokens] + params['position']['table'][: tokens.shape[1]]
        if placement == 'post':
            x = layer_norm(x + gpt2_attention(x, p['attention']), p['attention_norm'])
            x = layer_norm(x + gpt2_mlp(x, p['mlp']), p['mlp_norm'])
        else:
            h = gpt2_attention(layer_norm(x, p['attention_norm']), p['attention'])
            x = x + layer_norm(h, p['attention_post_norm'])
            h = gpt2_mlp(layer_norm(x, p['mlp_norm']), p['mlp'])
            x = x + layer_norm(h, p['mlp_post_norm'])
        return x @ params['embedding']['table'][:70].T

    return run


LLAMA = dict(
    position='rope',
    norm='rmsnorm',
    mlp='swiglu',
    num_kv_heads=2,
    use_bias=False,
    tie_embeddings=False,
)
REFERENCES = {
    'gpt2': (gpt2, {}),
    'llama': (llama, LLAMA),
    'post': (one_layer('post'), dict(norm_placement='post', num_layers=1, final_norm=False)),
    'sandwich': (
        one_layer('sandwich'),
        dict(norm_placement='sandwich', num_layers=1, final_norm=False),
    ),
}


@pytest.mark.parametrize('reference, changes', REFERENCES.values(), ids=REFERENCES.keys())
def test_logits_equal_numpy(reference, changes):
    config = make_config(**changes)
    params = disturbed(config)
    actual = forward(GPT(config), params, TOKENS)
    expected = reference(in_numpy(params), TOKENS)
    assert actual.shape == (2, 11, 70) and actual.dtype == jnp.float32
    assert expected.std() > 0.5
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_logits_of_a_trained_gpt2_equal_the_stored_ones(shared_data):
    folder = shared_data / 'weights' / 'mingpt_sort'
    sizes, weights = read_mingpt(folder / 'gpt-nano-sort-model.json')
    _, partials = read_mingpt(folder / 'gpt-nano-sort-t0-partials.json')
    heads, width = sizes['n_head'], sizes['n_embd']
    config = make_config(
        vocab_size=sizes['vocab_size'],
        max_seq_len=sizes['block_size'],
        num_layers=sizes['n_layer'],
        num_heads=heads,
        d_model=width,
        tie_embeddings=False,
    )

    def linear(name, inputs, outputs):
        return {
            'kernel': weights[f'{name}.weight'].T.reshape(*inputs, *outputs),
            'bias': weights[f'{name}.bias'].reshape(outputs),
        }

    def norm(name):
        return {'scale': weights[f'{name}.weight'], 'bias': weights[f'{name}.bias']}

    def table(name):
        rows = weights[f'{name}.weight']
        return {'table': np.pad(rows, ((0, config.padded_vocab_size - len(rows)), (0, 0)))}

    def block(layer):
        h, by_head = f'transformer.h.{layer}', (heads, width // heads)
        kernels = np.split(weights[f'{h}.attn.c_attn.weight'], 3)
        biases = np.split(weights[f'{h}.attn.c_attn.bias'], 3)
        projections = {
            name: {'kernel': kernel.T.reshape(width, *by_head), 'bias': bias.reshape(by_head)}
            for name, kernel, bias in zip(('query', 'key', 'value'), kernels, biases, strict=True)
        }
        output = linear(f'{h}.attn.c_proj', by_head, (width,))
        return {
            'attention_norm': norm(f'{h}.ln_1'),
            'attention': projections | {'output': output},
            'mlp_norm': norm(f'{h}.ln_2'),
            'mlp': {
                'up': linear(f'{h}.mlp.c_fc', (width,), (4 * width,)),
                'down': linear(f'{h}.mlp.c_proj', (4 * width,), (width,)),
            },
        }

    params = {
        'embedding': table('transformer.wte'),
        'position': {'table': weights['transformer.wpe.weight']},
        'blocks': jax.tree.map(lambda *x: np.stack(x), *map(block, range(sizes['n_layer']))),
        'final_norm': norm('transformer.ln_f'),
        'output': table('lm_head'),
    }
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh(config))
    logits = forward(GPT(config), params, partials['idx'].astype(int))
    np.testing.assert_allclose(logits, partials['lm_head'], rtol=0, atol=1e-5)


def read_mingpt(path):
    """The sizes and the arrays of a file of the trained model."""
    stored = json.loads(path.read_text())
    sizes = stored.pop('config')
    arrays = {
        name: np.frombuffer(base64.b64decode(array['data']), '<f4').reshape(array['shape'])
        for name, array in stored.items()
    }
    return sizes, arrays


def test_rope_depends_on_distances_only():
    config = make_config(position='rope')
    draw = np.random.default_rng(2).standard_normal
    q_BLHK, k_BLHK = (jnp.asarray(draw((1, 3, 2, 8)), jnp.float32) for _ in range(2))

    def scores(q_positions, k_positions, config=config):
        q = rotate(config, q_BLHK, jnp.asarray([q_positions]))
        k = rotate(config, k_BLHK, jnp.asarray([k_positions]))
        return np.asarray(jnp.einsum('blhk,blhk->blh', q, k))

    near = scores([3, 7, 1], [0, 2, 1])
    np.testing.assert_allclose(scores([103, 107, 101], [100, 102, 101]), near, rtol=0, atol=1e-3)
    assert np.abs(scores([4, 8, 2], [0, 2, 1]) - near).max() > 0.1
    still = rotate(config, q_BLHK, jnp.zeros((1, 3), jnp.int32))
    np.testing.assert_array_equal(still, q_BLHK)
    scaled = make_config(position='rope', rope_scaling=2.0)
    np.testing.assert_allclose(scores([6, 14, 2], [0, 4, 2], scaled), near, rtol=1e-5, atol=1e-5)


def test_rope_turns_each_pair_at_its_own_rate():
    config = make_config(position='rope', rope_base=100.0, head_dim=4)
    ones = jnp.ones((1, 1, 1, 4))
    turned = np.asarray(rotate(config, ones, jnp.asarray([[2]])))[0, 0, 0]
    fast, slow = 2.0, 2.0 / 10  # pairs (0, 2) and (1, 3): base ** (0/2) and base ** (1/2)
    cos, sin = np.cos([fast, slow]), np.sin([fast, slow])
    np.testing.assert_allclose(turned, [*(cos - sin), *(cos + sin)], rtol=1e-6)


def test_rope_scaling_spares_waves_that_are_short_in_the_original_context():
    scaled = dict(position='rope', head_dim=16, rope_scaling=8.0)
    plain = rope_frequencies(make_config(position='rope', head_dim=16))
    slow = rope_frequencies(make_config(**scaled))
    np.testing.assert_allclose(slow, plain / 8, rtol=1e-6)
    by_length = rope_frequencies(make_config(**scaled, rope_original_seq_len=64))
    waves = 64 * plain / (2 * np.pi)  # how many fit: 10.2, 3.2, 1.02, 0.32 …
    np.testing.assert_array_equal(by_length[:1], plain[:1])
    ramp = (waves[1:3] - 1) / 3
    np.testing.assert_allclose(by_length[1:3], ramp * plain[1:3] + (1 - ramp) * slow[1:3], 1e-6)
    np.testing.assert_allclose(by_length[3:], slow[3:], rtol=1e-6)


def test_alibi_slopes_are_the_published_ones():
    eight = alibi_slopes(make_config(num_heads=8))
    np.testing.assert_allclose(
        eight, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    )
    # Those of 8 heads, then every other one of 16.
    twelve = alibi_slopes(make_config(num_heads=12, d_model=48))
    np.testing.assert_allclose(twelve, [*eight, *(2.0**-p for p in (0.5, 1.5, 2.5, 3.5))])


def test_sinusoidal_values():
    config = make_config(position='sinusoidal', d_model=8, num_heads=2)
    zeros = jnp.zeros((1, 2, 8))
    waves = SinusoidalPosition(config).apply({}, zeros, jnp.asarray([[0, 3]]))[0]
    np.testing.assert_array_equal(waves[0], [0, 0, 0, 0, 1, 1, 1, 1])
    angles = np.array([3, 0.3, 0.03, 0.003])  # 3 / 10000 ** (2i / 8)
    np.testing.assert_allclose(waves[1], [*np.sin(angles), *np.cos(angles)], rtol=1e-6)


def test_initial_values():
    config = make_config(d_model=64, num_layers=3, position='learned', tie_embeddings=False)
    params = flatten(fresh(config))
    for path, leaf in params.items():
        if path.endswith('bias'):
            assert (leaf == 0).all(), path
        elif path.endswith('scale'):
            assert (leaf == 1).all(), path
        else:
            residual = path.endswith(('output/kernel', 'down/kernel'))
            std = 0.02 / np.sqrt(2 * 3) if residual else 0.02
            assert np.std(leaf) == pytest.approx(std, rel=4 / np.sqrt(2 * leaf.size)), path
            assert np.mean(leaf) == pytest.approx(0, abs=4 * std / np.sqrt(leaf.size)), path
            assert len(np.unique(leaf)) > 0.9 * leaf.size, f'{path} repeats itself'
        declared = parameter_groups(config).declared[path].std
        assert declared == pytest.approx(0 if path.endswith(('bias', 'scale')) else std), path
    kernel = params['blocks/attention/query/kernel']
    assert (kernel != params['blocks/attention/key/kernel']).any()
    other_seed = flatten(fresh(config, 1))
    assert (kernel != other_seed['blocks/attention/query/kernel']).all()


def test_residual_projections_may_start_as_the_others_do():
    params = flatten(fresh(make_config(d_model=64, scale_residual_init=False, init_std=0.1)))
    for path in ('blocks/attention/output/kernel', 'blocks/mlp/down/kernel', 'embedding/table'):
        assert np.std(params[path]) == pytest.approx(0.1, rel=0.05), path


@pytest.mark.parametrize('tied', [True, False])
def test_padding_rows_of_the_vocabulary_change_nothing(tied):
    config = make_config(tie_embeddings=tied)
    assert config.padded_vocab_size == 128

    @functools.partial(jax.jit, static_argnums=0)
    def outcome(config, params):
        executed = to_executed(params, config, scan=False)

        def loss(executed):
            hidden_BLD, _ = GPT(config).apply(
                {'params': executed}, jnp.asarray(TOKENS), method='hidden'
            )
            weights_BL = jnp.ones(TOKENS.shape)
            options = LossOptions(vocab_size=config.vocab_size)
            table_VD = output_table(executed, config)
            return cross_entropy(hidden_BLD, table_VD, jnp.asarray(TOKENS), weights_BL, options)

        (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(executed)
        return GPT(config).apply({'params': executed}, jnp.asarray(TOKENS))[0], value, sums, grads

    params = disturbed(config)
    name = 'embedding' if tied else 'output'
    table = params[name]['table'].at[70:].set(100.0)
    expected = outcome(config, params)
    actual = outcome(config, params | {name: {'table': table}})
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    padding_grads = expected[-1][name]['table'][70:]
    assert padding_grads.shape[0] == 58 and (padding_grads == 0).all()


def flatten(tree):
    return {
        jax.tree_util.keystr(keys, simple=True, separator='/'): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


# A path is public: optimizer groups, sharding and weight import go by it, checkpoints hold it. A
# change here makes every existing checkpoint unreadable.
EVERY_PARAMETER = """
blocks/attention/key/bias              2 2 8     layers kv_heads head_dim
blocks/attention/key/kernel            2 32 2 8  layers embed kv_heads head_dim
blocks/attention/key_norm/scale        2 8       layers head_dim
blocks/attention/output/bias           2 32      layers embed
blocks/attention/output/kernel         2 4 8 32  layers heads head_dim embed
blocks/attention/query/bias            2 4 8     layers heads head_dim
blocks/attention/query/kernel          2 32 4 8  layers embed heads head_dim
blocks/attention/query_norm/scale      2 8       layers head_dim
blocks/attention/value/bias            2 2 8     layers kv_heads head_dim
blocks/attention/value/kernel          2 32 2 8  layers embed kv_heads head_dim
blocks/attention_norm/bias             2 32      layers embed
blocks/attention_norm/scale            2 32      layers embed
blocks/attention_post_norm/bias        2 32      layers embed
blocks/attention_post_norm/scale       2 32      layers embed
blocks/mlp/down/bias                   2 32      layers embed
blocks/mlp/down/kernel                 2 64 32   layers mlp embed
blocks/mlp/gate/bias                   2 64      layers mlp
blocks/mlp/gate/kernel                 2 32 64   layers embed mlp
blocks/mlp/up/bias                     2 64      layers mlp
blocks/mlp/up/kernel                   2 32 64   layers embed mlp
blocks/mlp_norm/bias                   2 32      layers embed
blocks/mlp_norm/scale                  2 32      layers embed
blocks/mlp_post_norm/bias              2 32      layers embed
blocks/mlp_post_norm/scale             2 32      layers embed
embedding/table                        128 32    vocab embed
final_norm/bias                        32        embed
final_norm/scale                       32        embed
output/table                           128 32    vocab embed
position/table                         16 32     positions embed
"""


def described(config):
    """Path, shape and logical axes of every parameter."""
    boxed = abstract_params(config)
    lines = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    ):
        path = jax.tree_util.keystr(keys, simple=True, separator='/')
        shape, axes = ' '.join(map(str, leaf.value.shape)), ' '.join(leaf.names)
        lines.append(f'{path:<38} {shape:<9} {axes}')
    return sorted(lines)


FULL = dict(
    num_kv_heads=2,
    d_ff=64,
    qk_norm=True,
    mlp='swiglu',
    norm_placement='sandwich',
    tie_embeddings=False,
)


def test_parameter_paths_shapes_and_axes():
    assert described(make_config(**FULL)) == EVERY_PARAMETER.strip().splitlines()


def test_a_single_layer_is_stored_like_many():
    many = EVERY_PARAMETER.strip().splitlines()
    one = [re.sub(r'  2 (.*  layers )', r'  1 \1', line) for line in many]
    assert described(make_config(num_layers=1, **FULL)) == one


@pytest.mark.parametrize(
    'changes', [dict(num_layers=1), dict(num_layers=2, window_pattern=(3, 0))], ids=str
)
def test_a_single_period_may_be_scanned(changes):
    config = make_config(**changes)
    params = disturbed(config)
    scanned = forward(GPT(config, scan=True), params, TOKENS)
    np.testing.assert_array_equal(scanned, forward(GPT(config), params, TOKENS))


WRONG = {
    'vocab_size': dict(vocab_size=0),
    'max_seq_len': dict(max_seq_len=0),
    'num_layers': dict(num_layers=0),
    'num_heads': dict(num_heads=0),
    'd_model': dict(d_model=0),
    'd_model=30': dict(d_model=30),
    'num_kv_heads': dict(num_kv_heads=3),
    'num_kv_heads=-1': dict(num_kv_heads=-1),
    'head_dim': dict(position='rope', head_dim=5),
    'head_dim=-8': dict(head_dim=-8),
    'd_model=31': dict(position='sinusoidal', d_model=31, head_dim=8),
    'd_ff': dict(d_ff=-1),
    'norm_epsilon': dict(norm_epsilon=0.0),
    'init.std': dict(init={'std': -0.02}),
    'rope.base': dict(rope={'base': 0.0}),
    'rope.scaling': dict(rope={'scaling': 0.0}),
    'rope.original_seq_len': dict(rope={'original_seq_len': -1}),
    'rope.low_freq_factor': dict(rope={'low_freq_factor': 4.0}),
    'attention_soft_cap': dict(attention_soft_cap=-1.0),
    'output_soft_cap': dict(output_soft_cap=-1.0),
    'dropouts.residual': dict(dropouts={'residual': 1.0}),
    'dropouts.attention': dict(dropouts={'attention': -0.1}),
    'layer_kinds[1].window': dict(window_pattern=(4, -1)),
    'layer_kinds has 3': dict(window_pattern=(4, 4, 0), scan_layers='on', num_layers=4),
    'execution.attention_kernel': dict(
        execution={'attention_kernel': 'cudnn'}, dropouts={'attention': 0.1}
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_impossible_values_are_named(name):
    values = dict(vocab_size=70, max_seq_len=16, num_layers=2, num_heads=4, d_model=32)
    with pytest.raises(UserError) as error:
        finalize_model(ModelConfig(**(values | WRONG[name])))
    assert f'config.model.{name}' in str(error.value)
    assert '\n' not in str(error.value)


def test_derived_values():
    config = make_config(num_kv_heads=1, window_pattern=(5, 0))
    assert (config.d_ff, config.head_dim, config.num_kv_heads) == (128, 8, 1)
    assert [config.layer_kind(layer).window for layer in range(4)] == [5, 0, 5, 0]
    assert make_config().num_kv_heads == 4
    assert make_config(vocab_size=128).padded_vocab_size == 128
    assert make_config(vocab_size=129).padded_vocab_size == 256
