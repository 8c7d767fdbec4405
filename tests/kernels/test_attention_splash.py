"""Splash attention, interpreted on the CPU, against the reference: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType

from gpt_jax.kernels import attention as kernels
from gpt_jax.kernels import attention_splash
from gpt_jax.kernels.attention_splash import attend_splash
from gpt_jax.kernels.scores import AttentionMask, ScoreOptions
from gpt_jax.model.attention import attend
from gpt_jax.model.config import AttentionKernel, Kernels
from gpt_jax.model.gpt import GPT, init_params
from gpt_jax.model.layer_stack import to_executed
from tests.kernels.closeness import assert_close
from tests.model_configs import make_config

B, H, K = 2, 4, 16
splash = functools.partial(attend_splash, interpret=True)


def inputs(*, length, kv_heads=H, dtype=jnp.float32):
    """Queries, keys and values, large enough for a soft cap to bend their scores."""
    draw = np.random.default_rng(length).standard_normal
    shapes = [(B, length, heads, K) for heads in (H, kv_heads, kv_heads)]
    return [jnp.asarray(2 * draw(shape), dtype) for shape in shapes]


def segment_ids(length):
    """Another boundary in each row; ids need not grow."""
    return jnp.asarray([[3 * (i < 50) + (i > 120) for i in range(length)], [0] * length])


def value_and_gradients(kernel, arrays, *, segments=False, **options):
    """The output, and the gradients of a weighted sum of it."""
    length = arrays[0].shape[1]
    mask = AttentionMask(segment_ids_BS=segment_ids(length) if segments else None)
    weights_BLHK = jnp.asarray(
        np.random.default_rng(9).standard_normal(arrays[0].shape), jnp.float32
    )

    def weighted(q, k, v):
        out = kernel(q, k, v, ScoreOptions(mask=mask, **options))
        return jnp.sum(out.astype(jnp.float32) * weights_BLHK), out

    run = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(*arrays)
    return out, *gradients


CASES = {
    'causal': (dict(length=256), {}),
    'padded length': (dict(length=150), {}),
    'shorter than a block': (dict(length=5), {}),
    'several blocks': (dict(length=384, kv_heads=1), dict(window=200)),
    'window': (dict(length=150), dict(window=70)),
    'window of one': (dict(length=150), dict(window=1)),
    'gqa': (dict(length=128, kv_heads=2), {}),
    'mqa': (dict(length=128, kv_heads=1), {}),
    'soft cap': (dict(length=128), dict(soft_cap=2.0)),
    'segments': (dict(length=150), dict(segments=True)),
    'all': (dict(length=150, kv_heads=2), dict(window=70, soft_cap=2.0, segments=True)),
}


@pytest.mark.parametrize('shapes, options', CASES.values(), ids=CASES.keys())
def test_values_and_gradients_equal_the_reference(shapes, options):
    arrays = inputs(**shapes)
    assert_close(
        value_and_gradients(splash, arrays, **options),
        value_and_gradients(attend, arrays, **options),
    )


def test_half_precision_stays_close():
    arrays = inputs(length=150, kv_heads=2, dtype=jnp.bfloat16)
    assert_close(
        value_and_gradients(splash, arrays, window=70),
        value_and_gradients(attend, arrays, window=70),
        tolerance=0.02,
    )


@pytest.mark.parametrize('kv_heads, local_kv_heads', [(2, 1), (1, 2)], ids=['split', 'repeated'])
def test_each_device_attends_for_its_own_rows_and_heads(kv_heads, local_kv_heads, monkeypatch):
    """A key/value head that the mesh cannot split is repeated for the queries beside it."""
    shapes = []
    attend_on_one_device = attention_splash._attend_on_one_device

    def spy(*arrays, **options):
        shapes.append([x.shape[:3] for x in arrays[:3]])
        return attend_on_one_device(*arrays, **options)

    monkeypatch.setattr(attention_splash, '_attend_on_one_device', spy)
    arrays = inputs(length=128, kv_heads=kv_heads)
    expected = value_and_gradients(attend, arrays, segments=True)
    mesh = jax.make_mesh((2, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    rules = (('batch', 'data'), ('heads', 'tensor'), ('kv_heads', 'tensor'))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        actual = value_and_gradients(splash, arrays, segments=True)
    assert_close(actual, expected)
    kv = (B // 2, 128, local_kv_heads)
    assert shapes[0] == [(B // 2, 128, H // 2), kv, kv]


def test_a_batch_that_the_mesh_does_not_divide_stays_whole():
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
    arrays = inputs(length=128)
    expected = value_and_gradients(attend, arrays)
    with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', 'data'),)):
        assert_close(value_and_gradients(splash, arrays), expected)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_the_model_with_it_equals_the_model_with_the_reference(remat, monkeypatch):
    kernel = kernels.ATTENTION_KERNELS[AttentionKernel.SPLASH]._replace(attend=splash)
    monkeypatch.setitem(kernels.ATTENTION_KERNELS, AttentionKernel.SPLASH, kernel)
    config = make_config(
        num_kv_heads=2, window_pattern=(5, 0), attention_soft_cap=5.0, remat=remat, num_layers=4
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 70, (2, 16)), jnp.int32)
    params = nn.unbox(init_params(config, jax.random.key(0)))

    def gradients(kernel):
        model = GPT(config, kernels=Kernels(attention=kernel), scan=True)
        executed = to_executed(params, config, scan=True)

        def loss(executed):
            return jnp.sum(model.apply({'params': executed}, tokens)[0] ** 2)

        return jax.tree.leaves(jax.jit(jax.grad(loss))(executed))

    assert_close(
        gradients(AttentionKernel.SPLASH),
        gradients(AttentionKernel.XLA),
        tolerance=2e-5,
    )


REFUSED = {
    'slopes': lambda: dict(slopes_H=jnp.ones(H)),
    'dropout': lambda: dict(dropout_rate=0.1, dropout_key=jax.random.key(0)),
    'cache': lambda: dict(mask=AttentionMask(first_query_slot_B=jnp.zeros(B, jnp.int32))),
}


@pytest.mark.parametrize('name', REFUSED)
def test_it_refuses_what_it_would_ignore(name):
    with pytest.raises(ValueError, match='splash attention'):
        splash(*inputs(length=8), ScoreOptions(**REFUSED[name]()))


def test_it_refuses_a_cache():
    q, _, _ = inputs(length=8)
    _, k, v = inputs(length=16)
    with pytest.raises(ValueError, match='splash attention'):
        splash(q, k, v, ScoreOptions())
