"""The plain attention against loops in float64, and the choice of a kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config_tree import from_json, to_json
from gpt_jax.errors import UserError
from gpt_jax.kernels.attention import ATTENTION_KERNELS, choose_kernel, kernel_obstacle
from gpt_jax.kernels.attention_cudnn import attend_cudnn
from gpt_jax.kernels.scores import AttentionMask, ScoreOptions
from gpt_jax.model import attention
from gpt_jax.model.config import AttentionKernel, ModelConfig, finalize_model

B, L, S, H, K = 2, 7, 12, 4, 6
SLOPES = (1.0, 0.5, 0.25, 0.125)
SEGMENTS = ((0, 0, 0, 1, 1, 1, 2), (3, 3, 3, 3, 0, 0, 0))


def attend_by_loops(q, k, v, *, first_query=None, window=0, cap=0.0, slopes=None, segments=None):
    """Attention from its definition; `first_query`: the slot of each row's first query."""
    batch, length, heads, width = q.shape
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(batch, length, heads):
        own = i if first_query is None else first_query[b] + i
        group = h // (heads // k.shape[2])
        scores, values = [], []
        for slot in range(own + 1):
            if window and slot <= own - window:
                continue
            if segments is not None and segments[b][slot] != segments[b][own]:
                continue
            score = sum(q[b, i, h, d] * k[b, slot, group, d] for d in range(width))
            score /= np.sqrt(width)
            if cap:
                score = cap * np.tanh(score / cap)
            if slopes is not None:
                score -= slopes[h] * (own - slot)
            scores.append(score)
            values.append(v[b, slot, group])
        weights = np.exp(np.array(scores) - max(scores))
        out[b, i, h] = (weights / weights.sum()) @ np.array(values)
    return out


def float32(arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def inputs(*, keys=L, kv_heads=H, seed=0):
    """Queries, keys and values in float64, large enough for a soft cap and a softmax to matter."""
    draw = np.random.default_rng(seed).standard_normal
    shapes = [(B, L, H, K), (B, keys, kv_heads, K), (B, keys, kv_heads, K)]
    return [2 * draw(shape) for shape in shapes]


def attend(q, k, v, *, first_query=None, window=0, cap=0.0, slopes=None, segments=None):
    """The plain attention with the arguments of `attend_by_loops`."""
    mask = AttentionMask(
        first_query_slot_B=None if first_query is None else jnp.asarray(first_query),
        segment_ids_BS=None if segments is None else jnp.asarray(segments),
    )
    slopes_H = None if slopes is None else jnp.asarray(slopes)
    options = ScoreOptions(mask=mask, window=window, soft_cap=cap, slopes_H=slopes_H)
    return attention.attend(q, k, v, options)


CASES = {
    'causal': ({}, {}),
    'window': ({}, dict(window=3)),
    'window of one': ({}, dict(window=1)),
    'gqa': (dict(kv_heads=2), {}),
    'mqa': (dict(kv_heads=1), {}),
    'soft cap': ({}, dict(cap=2.0)),
    'alibi': ({}, dict(slopes=SLOPES)),
    'alibi gqa': (dict(kv_heads=2), dict(slopes=SLOPES)),
    'segments': ({}, dict(segments=SEGMENTS)),
    'middle of a cache': (dict(keys=S), dict(first_query=(4, 4))),
    'rows of a cache': (dict(keys=S), dict(first_query=(0, 5))),
    'cache, all': (
        dict(keys=S, kv_heads=2),
        dict(first_query=(4, 1), window=5, cap=3.0, slopes=SLOPES),
    ),
    'segments, all': (
        dict(kv_heads=2),
        dict(window=2, cap=3.0, slopes=SLOPES, segments=SEGMENTS),
    ),
}


@pytest.mark.parametrize('shapes, options', CASES.values(), ids=CASES.keys())
def test_forward_equals_the_loops(shapes, options):
    arrays = inputs(**shapes)
    expected = attend_by_loops(*arrays, **options)
    actual = np.asarray(jax.jit(functools.partial(attend, **options))(*float32(arrays)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_numerical_ones():
    options = dict(window=3, cap=2.0, slopes=SLOPES[:2], segments=((0, 0, 0, 1),))
    draw = np.random.default_rng(1).standard_normal
    arrays = [draw((1, 4, 2, 3)), draw((1, 4, 1, 3)), draw((1, 4, 1, 3))]
    weights = draw((1, 4, 2, 3))

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v, **options) * weights.astype(np.float32))

    actual = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*float32(arrays))
    for i, array in enumerate(arrays):
        expected = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            step = np.zeros_like(array)
            step[at] = 1e-5
            above = attend_by_loops(*arrays[:i], array + step, *arrays[i + 1 :], **options)
            below = attend_by_loops(*arrays[:i], array - step, *arrays[i + 1 :], **options)
            expected[at] = ((above - below) * weights).sum() / 2e-5
        np.testing.assert_allclose(actual[i], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_close():
    arrays = inputs()
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in arrays]
    actual = jax.jit(attend)(*(jnp.asarray(x, jnp.bfloat16) for x in arrays))
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), attend_by_loops(*rounded), rtol=0.02, atol=0.03
    )


def attend_dropping(rate, key, *, window=0):
    options = ScoreOptions(window=window, dropout_rate=rate, dropout_key=key)
    return attention.attend(*float32(inputs()), options)


def test_dropout_scales_what_it_keeps():
    # A query that sees one key only has the weight 1, so that its output is the value or nothing.
    out = jax.jit(functools.partial(attend_dropping, 0.25, window=1))(jax.random.key(0))
    kept = np.asarray(out / float32(inputs())[2])
    np.testing.assert_allclose(kept, np.where(kept > 0.5, 1 / 0.75, 0), atol=1e-5)
    assert 0.05 < (kept == 0).mean() < 0.5


def test_dropout_keeps_the_mean():
    drop = functools.partial(attend_dropping, 0.5)
    many = np.asarray(jax.jit(jax.vmap(drop))(jax.random.split(jax.random.key(0), 2000)))
    error = many.mean(0) - jax.jit(drop)(None)
    assert (np.abs(error) / (many.std(0) / np.sqrt(len(many)) + 1e-6)).max() < 5, 'standard errors'


def test_dropout_follows_its_key():
    drop = jax.jit(functools.partial(attend_dropping, 0.5))
    first, second = jax.random.key(3), jax.random.key(4)
    np.testing.assert_array_equal(drop(first), drop(first))
    assert float(np.abs(drop(first) - drop(second)).max()) > 0.1
    off = jax.jit(functools.partial(attend_dropping, 0.0))
    np.testing.assert_array_equal(off(first), drop(None))


def model_config(**changes):
    """A config that each fused kernel can run on its backend, but for `changes`."""
    values = dict(vocab_size=70, num_heads=4, d_model=256, compute_dtype='bfloat16')
    config = from_json(to_json(ModelConfig(**(values | changes))), ModelConfig)
    finalize_model(config)
    return config


def test_auto_takes_the_fused_kernel_where_it_runs():
    resolve = functools.partial(choose_kernel, segments=False)
    assert resolve(model_config(), backend='gpu') == AttentionKernel.CUDNN
    assert resolve(model_config(), backend='cpu') == AttentionKernel.BLOCKED
    assert resolve(model_config(), backend='tpu') == AttentionKernel.SPLASH
    for backend in ('gpu', 'tpu'):
        dropping = model_config(attention_dropout=0.1)
        assert resolve(dropping, backend=backend) == AttentionKernel.XLA
        asked = model_config(attention_kernel='xla')
        assert resolve(asked, backend=backend) == AttentionKernel.XLA
    assert choose_kernel(model_config(), backend='gpu', segments=True) == AttentionKernel.XLA
    assert choose_kernel(model_config(), backend='tpu', segments=True) == AttentionKernel.SPLASH


@pytest.mark.parametrize('backend', ['cpu', 'gpu', 'tpu'])
def test_auto_takes_the_ring_exactly_where_the_sequence_is_split(backend):
    for config in (model_config(), model_config(attention_dropout=0.1, position='alibi')):
        resolve = functools.partial(choose_kernel, config, backend=backend, segments=True)
        assert resolve(context=2) == AttentionKernel.RING
        assert resolve(context=1) != AttentionKernel.RING


OBSTACLES = {
    'cudnn': {
        'the backend is cpu': dict(backend='cpu'),
        'config.model.precision.compute': dict(compute_dtype='float32'),
        'config.model.attention_soft_cap': dict(attention_soft_cap=30.0),
        'config.model.position': dict(position='alibi'),
        'config.data.segment_ids': dict(segments=True),
        'config.model.head_dim is over 128': dict(head_dim=136),
        'config.model.head_dim is over 128 or no multiple of 8': dict(head_dim=60),
        'sharded by config.mesh.context=4': dict(context=4),
    },
    'splash': {
        'the backend is gpu': dict(backend='gpu'),
        'config.model.position': dict(position='alibi'),
        'sharded by config.mesh.context=2': dict(context=2),
    },
    'blocked': {
        'the backend is gpu': dict(backend='gpu'),
        'config.data.segment_ids': dict(segments=True),
        'sharded by config.mesh.context=2': dict(context=2),
    },
    'xla': {'sharded by config.mesh.context=2': dict(context=2)},
    'ring': {'not sharded by config.mesh.context=1': dict(context=1)},
}
BACKENDS = {'cudnn': 'gpu', 'splash': 'tpu', 'xla': 'cpu', 'ring': 'cpu', 'blocked': 'cpu'}


@pytest.mark.parametrize(
    'kernel, name', [(kernel, name) for kernel, names in OBSTACLES.items() for name in names]
)
def test_asking_for_a_kernel_that_cannot_run_is_an_error(kernel, name):
    changes = dict(OBSTACLES[kernel][name])
    where = dict(
        backend=changes.pop('backend', BACKENDS[kernel]),
        segments=changes.pop('segments', False),
        context=changes.pop('context', 1),
    )
    with pytest.raises(UserError) as error:
        choose_kernel(model_config(attention_kernel=kernel, **changes), **where)
    assert f'config.model.execution.attention_kernel={kernel}' in str(error.value)
    assert name in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kernel, backend', [('cudnn', 'gpu'), ('splash', 'tpu')])
def test_dropout_is_an_obstacle_and_an_error(kernel, backend):
    dropping = model_config(attention_dropout=0.1)
    obstacle = kernel_obstacle(AttentionKernel(kernel), dropping, backend=backend, segments=False)
    assert 'config.model.dropouts.attention' in obstacle
    with pytest.raises(UserError, match=r'config\.model\.dropouts\.attention=0'):
        model_config(attention_kernel=kernel, attention_dropout=0.1)


def test_every_kernel_is_listed():
    others = {AttentionKernel.AUTO, AttentionKernel.XLA}
    assert set(ATTENTION_KERNELS) == set(AttentionKernel) - others


REFUSED = {
    'soft cap': lambda: dict(soft_cap=1.0),
    'slopes': lambda: dict(slopes_H=jnp.ones(H)),
    'dropout': lambda: dict(dropout_rate=0.1, dropout_key=jax.random.key(0)),
    'segments': lambda: dict(mask=AttentionMask(segment_ids_BS=jnp.zeros((B, L), jnp.int32))),
    'cache': lambda: dict(mask=AttentionMask(first_query_slot_B=jnp.zeros(B, jnp.int32))),
}


@pytest.mark.parametrize('name', REFUSED)
def test_the_fused_kernel_refuses_what_it_would_ignore(name):
    arrays = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    with pytest.raises(ValueError, match='cudnn attention'):
        attend_cudnn(*arrays, ScoreOptions(**REFUSED[name]()))
