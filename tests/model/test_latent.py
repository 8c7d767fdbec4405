"""Latent attention against the paper's equations and against transformers' DeepSeek-V2."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.errors import UserError
from gpt_jax.kernels.scores import AttentionMask
from gpt_jax.model.attention import AttentionContext, Differential, GroupedQuery, Latent
from gpt_jax.model.attention.layer_cache import LayerCache
from gpt_jax.model.cache import cache_bytes_per_token, grouped_query_cache_bytes_per_token
from gpt_jax.model.config import Kernels, ModelConfig, finalize_model
from gpt_jax.model.position import default_positions
from tests.model_configs import make_config

B, L, D, H, K, R, P, V = 2, 11, 32, 4, 8, 12, 6, 10
WIDTHS = dict(_type='latent', kv_rank=R, rope_dim=P, value_dim=V)
DEEPSEEK_V2_LITE = dict(
    vocab_size=102400,
    num_layers=27,
    num_heads=16,
    d_model=2048,
    head_dim=128,
    position='rope',
    precision={'compute': 'bfloat16'},
    attention=dict(_type='latent', kv_rank=512, rope_dim=64),
)


def make_layer(**changes):
    """The module of a layer, its inputs, and parameters of which none is 0 or 1."""
    attention = WIDTHS | changes.pop('attention', {})
    config = make_config(head_dim=K, attention=attention, **changes)
    module = config.attention.make(config, kernels=Kernels(), window=0, name='attention')
    draw = np.random.default_rng(0).standard_normal
    x = jnp.asarray(draw((B, L, D)), jnp.float32)
    context = AttentionContext(default_positions(B, L), AttentionMask())
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), x, context))['params']
    params = jax.tree.map(lambda leaf: leaf + 0.3 * draw(leaf.shape).astype(np.float32), params)
    return module, params, x, context


def rms_norm(x, p, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * p['scale']


def rope(x_BLHP):
    half = x_BLHP.shape[-1] // 2
    angles = np.arange(x_BLHP.shape[1])[:, None] / 10000.0 ** (np.arange(half) / half)
    turned = (x_BLHP[..., :half] + 1j * x_BLHP[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize('q_rank', [0, 9])
@pytest.mark.parametrize('position', ['rope', 'none'])
def test_equals_the_equations_of_the_paper(position, q_rank):
    """Equations 37 to 47 of https://arxiv.org/abs/2405.04434, in float64."""
    module, params, x, context = make_layer(position=position, attention={'q_rank': q_rank})
    actual, _ = jax.jit(module.apply)({'params': params}, x, context)

    x = np.asarray(x, np.float64)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    turn = rope if position == 'rope' else lambda x: x
    query_input, name = x, 'query'
    if q_rank:
        down = x @ p['query_down']['kernel'] + p['query_down']['bias']
        query_input, name = rms_norm(down, p['query_norm'], 1e-5), 'query_up'
    q = np.einsum('blr,rhk->blhk', query_input, p[name]['kernel'])
    q = np.concatenate([q[..., :K], turn(q[..., K:])], -1)
    compressed = x @ p['kv_down']['kernel'] + p['kv_down']['bias']
    latent = rms_norm(compressed[..., :R], p['kv_norm'], 1e-5)
    shared = turn(compressed[:, :, None, R:])
    keys_and_values = np.einsum('blr,rhk->blhk', latent, p['kv_up']['kernel'])
    out = np.zeros((B, L, H, V))
    for head in range(H):
        k = np.concatenate([keys_and_values[:, :, head, :K], shared[:, :, 0]], -1)
        scores = np.einsum('blk,bsk->bls', q[:, :, head], k) / np.sqrt(K + P)
        scores = np.where(np.tril(np.ones((L, L))) > 0, scores, -np.inf)
        out[:, :, head] = softmax(scores) @ keys_and_values[:, :, head, K:]
    expected = np.einsum('blhv,hvd->bld', out, p['output']['kernel']) + p['output']['bias']
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('q_rank', [0, 9])
@pytest.mark.parametrize('bias', [False, True])
def test_equals_transformers(bias, q_rank):
    """Rotated dimensions are in another order there: (2i, 2i + 1) is our pair (i, i + P/2)."""
    torch = pytest.importorskip('torch', reason='pinned on 3.11 only')
    deepseek = pytest.importorskip('transformers.models.deepseek_v2.modeling_deepseek_v2')
    config = deepseek.DeepseekV2Config(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=H,
        kv_lora_rank=R,
        q_lora_rank=q_rank or None,
        qk_nope_head_dim=K,
        qk_rope_head_dim=P,
        v_head_dim=V,
        attention_bias=bias,
        max_position_embeddings=64,
        attn_implementation='eager',
    )
    torch.manual_seed(0)
    reference = deepseek.DeepseekV2Attention(config, layer_idx=0).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = np.random.default_rng(0).standard_normal((B, L, D)).astype(np.float32)
    with torch.no_grad():
        x_torch = torch.from_numpy(x)
        turns = deepseek.DeepseekV2RotaryEmbedding(config)(x_torch, torch.arange(L)[None])
        mask = torch.full((L, L), -torch.inf).triu(1)[None, None]
        expected, _ = reference(x_torch, attention_mask=mask, position_embeddings=turns)

    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    order = np.concatenate([np.arange(0, P, 2), np.arange(1, P, 2)])
    rotated_last = lambda kept: np.concatenate([np.arange(kept), kept + order])  # noqa: E731
    queries = 'q_b_proj' if q_rank else 'q_proj'
    params = {
        'query_up' if q_rank else 'query': {
            'kernel': tensors[f'{queries}.weight'].T.reshape(-1, H, K + P)[..., rotated_last(K)]
        },
        'kv_down': {'kernel': tensors['kv_a_proj_with_mqa.weight'].T[:, rotated_last(R)]},
        'kv_norm': {'scale': tensors['kv_a_layernorm.weight']},
        'kv_up': {'kernel': tensors['kv_b_proj.weight'].T.reshape(R, H, K + V)},
        'output': {'kernel': tensors['o_proj.weight'].T.reshape(H, V, D)},
    }
    if q_rank:
        params['query_down'] = {'kernel': tensors['q_a_proj.weight'].T}
        params['query_norm'] = {'scale': tensors['q_a_layernorm.weight']}
    if bias:
        params['kv_down']['bias'] = tensors['kv_a_proj_with_mqa.bias'][rotated_last(R)]
        params['output']['bias'] = tensors['o_proj.bias']
        if q_rank:
            params['query_down']['bias'] = tensors['q_a_proj.bias']
    module, own, _, context = make_layer(
        position='rope', use_bias=bias, norm_epsilon=1e-6, attention={'q_rank': q_rank}
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, own)
    actual, _ = jax.jit(module.apply)({'params': params}, x, context)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-5, atol=1e-5)


def decode(module, params, x, *, calls, slots, forgets=(0, 0)):
    """Outputs of calls with some tokens each; rows forget their last tokens after the first call.

    They get these tokens again, so a row's calls after the first are as many tokens behind.
    """
    start_B = jnp.zeros(B, jnp.int32)
    [(name, (heads, width))] = module.options.cache_shapes(module.config).items()
    cache = LayerCache({name: jnp.zeros((B, heads, slots, width))})
    outputs = []
    for tokens in calls:
        positions_BL = start_B[:, None] + jnp.arange(tokens)[None]
        context = AttentionContext(positions_BL, AttentionMask(first_query_slot_B=start_B))
        new = jnp.take_along_axis(x, positions_BL[:, :, None], axis=1)
        out, cache = module.apply({'params': params}, new, context, cache)
        start_B += tokens - (0 if outputs else jnp.asarray(forgets))
        outputs.append(out)
    return jnp.concatenate(outputs, 1)


@pytest.mark.parametrize('calls', [(7, 1, 1, 2), (1, 9, 1)])
@pytest.mark.parametrize('position', ['rope', 'alibi'])
@pytest.mark.parametrize('absorbs', [True, False])
def test_both_forms_over_a_cache_equal_the_whole_sequence(absorbs, position, calls, monkeypatch):
    monkeypatch.setattr(Latent, 'absorbs', lambda *_, **__: absorbs)
    module, params, x, context = make_layer(
        position=position,
        attention_soft_cap=5.0,
        rope=dict(yarn=True, scaling=4.0, original_seq_len=8),
        attention=dict(yarn_mscale=0.7, bias=True),
    )
    whole, _ = jax.jit(module.apply)({'params': params}, x, context)
    first, forgets = calls[0], min(3, calls[0])
    run = functools.partial(decode, module, calls=calls, slots=13, forgets=(0, forgets))
    actual = jax.jit(run)(params, x)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    close(actual[0], whole[0])
    close(actual[1, :first], whole[1, :first])
    close(actual[1, first:], whole[1, first - forgets : -forgets])


def largest_over_slots(module, params, x, *, tokens, slots):
    """The size per row of the largest array of a call that has an axis of the cache's slots."""

    def call(x):
        return decode(module, params, x, calls=(tokens,), slots=slots)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            for inner in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from sizes(inner)
            for variable in equation.outvars:
                if slots in variable.aval.shape:
                    yield variable.aval.size // B

    return max(sizes(jax.make_jaxpr(call)(x).jaxpr))


def test_decoding_holds_no_keys_or_values_per_head():
    module, params, x, _ = make_layer(position='rope')
    slots = 37
    assert largest_over_slots(module, params, x, tokens=1, slots=slots) == slots * (R + P)
    assert slots * (R + P) < slots * H * K
    wide = make_layer(position='rope', attention={'kv_rank': 64})
    assert not wide[0].options.absorbs(wide[0].config, queries=L, keys=13)
    assert largest_over_slots(*wide[:3], tokens=L, slots=13) >= 13 * H * (K + V)


def test_the_part_without_positions_may_be_odd():
    assert make_config(head_dim=7, position='rope', attention=WIDTHS).head_dim == 7


def test_the_form_with_fewer_flops_is_chosen():
    """At the sizes of DeepSeek-V2-Lite."""
    config = ModelConfig(**DEEPSEEK_V2_LITE)
    finalize_model(config)
    absorbs = [
        config.attention.absorbs(config, queries=queries, keys=keys)
        for queries, keys in [(1, 128), (8, 1024), (32, 1024), (512, 512), (512, 1024)]
    ]
    assert absorbs == [True, True, True, False, False]


def test_bytes_of_the_cache():
    config = ModelConfig(**DEEPSEEK_V2_LITE)
    finalize_model(config)
    assert cache_bytes_per_token(config) == 27 * (512 + 64) * 2 == 31_104
    assert grouped_query_cache_bytes_per_token(config) == 27 * 2 * 16 * 128 * 2 == 221_184
    plain = dataclasses.replace(config, attention=GroupedQuery())
    assert cache_bytes_per_token(plain) == grouped_query_cache_bytes_per_token(config)
    split = dataclasses.replace(config, attention=Differential())
    assert cache_bytes_per_token(split) == grouped_query_cache_bytes_per_token(config)


@pytest.mark.parametrize(
    'key, changes',
    {
        'num_kv_heads=2 ': dict(num_kv_heads=2),
        'attention.rope_dim=0 ': dict(position='rope', attention=WIDTHS | {'rope_dim': 0}),
        'attention.rope_dim=5 ': dict(position='rope', attention=WIDTHS | {'rope_dim': 5}),
        'attention.kv_rank=0 ': dict(attention=WIDTHS | {'kv_rank': 0}),
        'attention.value_dim=-1 ': dict(attention=WIDTHS | {'value_dim': -1}),
        'attention.yarn_mscale=0.7 ': dict(attention=WIDTHS | {'yarn_mscale': 0.7}),
    }.items(),
)
def test_impossible_values_are_named(key, changes):
    with pytest.raises(UserError) as error:
        make_config(**{'attention': WIDTHS} | changes)
    assert f'config.model.{key}' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'changes, text',
    [
        (dict(position='rope'), '4 heads of 8 + 6 rotated, values of 10, kv_rank 12'),
        (
            dict(attention={'_type': 'latent', 'q_rank': 9, 'rope_dim': 2}),
            '4 heads of 8 + 2 shared, kv_rank 512, q_rank 9',
        ),
        (dict(attention=WIDTHS | dict(rope_dim=0, value_dim=0)), '4 heads of 8, kv_rank 12'),
    ],
)
def test_the_start_describes_the_heads(changes, text):
    config = make_config(**{'attention': WIDTHS} | changes)
    assert config.attention.describe(config) == f'latent attention with {text}'
