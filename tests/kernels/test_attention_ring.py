"""Ring attention on meshes of CPU devices against the reference on one: values and gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gpt_jax.errors import UserError
from gpt_jax.kernels import attention_ring
from gpt_jax.kernels.attention_ring import attend_ring
from gpt_jax.kernels.scores import AttentionMask, ScoreOptions
from gpt_jax.model.attention import attend
from gpt_jax.model.config import AttentionKernel, Kernels
from gpt_jax.model.gpt import GPT, init_params
from gpt_jax.model.layer_stack import to_executed
from tests.kernels.closeness import assert_close
from tests.model_configs import make_config

B, H, K = 4, 4, 8
AXES = ('data', 'fsdp', 'tensor', 'context')
RULES = (
    ('batch', ('data', 'fsdp')),
    ('length', 'context'),
    ('heads', 'tensor'),
    ('kv_heads', 'tensor'),
)


def on_mesh(function, *, rules=RULES, axes=AXES, **sizes):
    """`function` under a mesh of these sizes and the logical axis rules."""
    shape = [sizes.get(axis, 1) for axis in axes]
    devices = jax.devices()[: np.prod(shape)]
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes), devices=devices)

    def call(*args, **kwargs):
        with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
            return function(*args, **kwargs)

    return call


def inputs(*, length=32, kv_heads=H, dtype=jnp.float32):
    """Queries, keys and values, large enough for a soft cap to bend their scores."""
    draw = np.random.default_rng(length).standard_normal
    shapes = [(B, length, heads, K) for heads in (H, kv_heads, kv_heads)]
    return [jnp.asarray(2 * draw(shape), dtype) for shape in shapes]


def segment_ids(length):
    """Other boundaries in each row; ids need not grow."""
    return jnp.asarray(
        [[(7 * (i // (5 + 4 * row))) % 5 for i in range(length)] for row in range(B)]
    )


def value_and_gradients(kernel, arrays, *, segments=False, slopes=False, dropout=0.0, **options):
    """The output, and the gradients of a weighted sum of it (of the slopes' too)."""
    length = arrays[0].shape[1]
    mask = AttentionMask(segment_ids_BS=segment_ids(length) if segments else None)
    draw = np.random.default_rng(9).standard_normal
    weights_BLHK = jnp.asarray(draw(arrays[0].shape), jnp.float32)
    key = jax.random.key(5) if dropout else None

    def weighted(q, k, v, slopes_H):
        scoring = ScoreOptions(
            mask=mask,
            slopes_H=slopes_H,
            dropout_rate=dropout,
            dropout_key=key,
            **options,
        )
        out = kernel(q, k, v, scoring)
        return jnp.sum(out.astype(jnp.float32) * weights_BLHK), out

    run = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2, 3), has_aux=True))
    (_, out), gradients = run(*arrays, 0.5 ** jnp.arange(H) if slopes else None)
    return jax.tree.leaves((out, *gradients))


CASES = {
    'two parts': (dict(context=2), {}, {}),
    'four parts': (dict(context=4), {}, dict(soft_cap=2.0)),
    'eight parts': (dict(context=8), {}, dict(slopes=True)),
    'one token each': (dict(context=8), dict(length=8), {}),
    'window within a part': (dict(context=4), {}, dict(window=3)),
    'window of a part and one': (dict(context=4), {}, dict(window=9)),
    'window of two parts': (dict(context=4), {}, dict(window=17, segments=True)),
    'window of one': (dict(context=2), {}, dict(window=1)),
    'segments': (dict(context=4), {}, dict(segments=True)),
    'dropout': (dict(context=4), {}, dict(dropout=0.3)),
    'gqa': (dict(context=4, tensor=2), dict(kv_heads=2), dict(slopes=True, dropout=0.3)),
    'heads repeated': (dict(context=2, tensor=4), dict(kv_heads=2), dict(dropout=0.3)),
    'all': (
        dict(context=2, tensor=2, data=2),
        dict(kv_heads=2),
        dict(window=21, soft_cap=2.0, segments=True, slopes=True, dropout=0.3),
    ),
    'batch over two axes': (
        dict(context=2, fsdp=2, data=2),
        dict(kv_heads=1),
        dict(segments=True, dropout=0.3),
    ),
}


@pytest.mark.parametrize('mesh, shapes, options', CASES.values(), ids=CASES.keys())
def test_values_and_gradients_equal_the_reference(mesh, shapes, options):
    arrays = inputs(**shapes)
    assert_close(
        on_mesh(value_and_gradients, **mesh)(attend_ring, arrays, **options),
        value_and_gradients(attend, arrays, **options),
    )


@pytest.mark.parametrize('mesh', [{}, dict(context=4)], ids=['no ring', 'four parts'])
def test_parts_are_cut_into_blocks_of_keys(mesh, monkeypatch):
    """Blocks of 4 of the 12 or 48 keys of a part, of which a window of 6 leaves a few."""
    monkeypatch.setattr(attention_ring, 'KEY_BLOCK', 5)
    arrays = inputs(length=48, kv_heads=2)
    for options in (dict(dropout=0.3), dict(window=6, segments=True)):
        assert_close(
            on_mesh(value_and_gradients, **mesh)(attend_ring, arrays, **options),
            value_and_gradients(attend, arrays, **options),
        )


def test_half_precision_stays_close():
    arrays = inputs(kv_heads=2, dtype=jnp.bfloat16)
    options = dict(window=19, segments=True)
    assert_close(
        on_mesh(value_and_gradients, context=4, tensor=2)(attend_ring, arrays, **options),
        value_and_gradients(attend, arrays, **options),
        tolerance=0.02,
    )


def test_a_sequence_over_two_axes_of_the_mesh():
    rules = (('batch', None), ('length', ('data', 'context')), ('heads', None), ('kv_heads', None))
    arrays = inputs()
    assert_close(
        on_mesh(value_and_gradients, rules=rules, context=2, data=2)(
            attend_ring, arrays, dropout=0.3, window=11
        ),
        value_and_gradients(attend, arrays, dropout=0.3, window=11),
    )


def test_a_length_that_the_ring_does_not_divide_stays_whole():
    arrays = inputs(length=30)
    assert_close(
        on_mesh(value_and_gradients, context=4)(attend_ring, arrays, dropout=0.3),
        value_and_gradients(attend, arrays, dropout=0.3),
    )


def compiled_gradients(kernel, *, length=512, **options):
    """Attention's gradients compiled for four parts of a sequence, as text and in bytes."""

    def compile_on_mesh():
        mesh = jax.sharding.get_mesh()
        spec = PartitionSpec('data', 'context')
        arrays = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            for x in inputs(length=length)
        ]

        def loss(q, k, v):
            return jnp.sum(kernel(q, k, v, ScoreOptions(**options)) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()

    # No axes of size 1, over which compilers keep sums that move nothing.
    axes, rules = ('data', 'context'), (('batch', 'data'), ('length', 'context'))
    compiled = on_mesh(compile_on_mesh, axes=axes, rules=rules, context=4, data=2)()
    return compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes


def count(collective, text):
    return len(re.findall(rf' {collective}(?:-start)?\(', text))


def test_keys_travel_and_are_never_gathered(monkeypatch):
    monkeypatch.setattr(attention_ring, 'KEY_BLOCK', 64)
    text, ring_bytes = compiled_gradients(attend_ring)
    assert count('collective-permute', text) > 0
    for collective in ('all-gather', 'all-to-all', 'all-reduce', 'reduce-scatter'):
        assert count(collective, text) == 0, collective
    text, xla_bytes = compiled_gradients(attend)
    assert count('all-gather', text) > 0, 'the reference should show what the ring avoids'
    assert ring_bytes < xla_bytes / 4


def test_memory_does_not_grow_with_the_ring():
    """Twice the sequence over twice the devices takes as much of each."""

    def temporaries(parts):
        arrays = inputs(length=64 * parts)

        def loss(q, k, v):
            return jnp.sum(attend_ring(q, k, v, ScoreOptions()) ** 2)

        def compile_on_mesh():
            spec = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(None, 'context'))
            abstract = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec) for x in arrays]
            return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*abstract).compile()

        compiled = on_mesh(compile_on_mesh, context=parts)()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 1.1 * temporaries(2)


def test_a_window_ends_the_ring_early():
    """A window of a part and one token sees one part further back: one round instead of three."""

    def rounds(window):
        options = ScoreOptions(window=window)
        jaxpr = on_mesh(jax.make_jaxpr(attend_ring), context=4)(*inputs(), options)
        scans = re.findall(r'length=(\d+)', str(jaxpr))
        return max(map(int, scans))

    assert [rounds(window) for window in (1, 9, 10, 17, 18, 0)] == [1, 1, 2, 2, 3, 3]


def gradients_of_a_model(kernel, *, remat='none', trace=False, **changes):
    """Of a model, its layers scanned; `trace` gives the program as text instead."""
    config = make_config(remat=remat, **changes)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 70, (4, 16)), jnp.int32)
    model = GPT(config, kernels=Kernels(attention=kernel), scan=True, flat=False)

    def init():
        params = nn.unbox(init_params(config, jax.random.key(0)))
        return to_executed(params, config, scan=True)

    def loss(params):
        logits, _ = model.apply({'params': params}, tokens, dropout_key=jax.random.key(1))
        return jnp.sum(logits**2)

    gradient = jax.grad(loss)
    if trace:
        return str(jax.make_jaxpr(gradient)(jax.eval_shape(init)))
    return jax.tree.leaves(jax.jit(gradient)(jax.jit(init)()))


def test_the_model_with_it_equals_the_model_with_the_reference():
    gradients = functools.partial(
        gradients_of_a_model,
        num_kv_heads=2,
        window_pattern=(9,),
        position='alibi',
        attention_dropout=0.2,
        dropout=0.1,
    )
    expected = gradients(AttentionKernel.XLA)
    actual = on_mesh(gradients, context=2, tensor=2)(AttentionKernel.RING, remat='full')
    assert_close(actual, expected, tolerance=2e-5)


def test_remat_keeps_its_result():
    """With `attention` the keys go round for both passes, and not a third time."""

    def permutes(remat):
        trace = on_mesh(gradients_of_a_model, context=4)
        return trace(AttentionKernel.RING, remat=remat, num_layers=1, trace=True).count('ppermute[')

    assert 0 < permutes('none') == permutes('attention') < permutes('full')


def test_a_scan_over_layers_keeps_no_block_of_scores_or_masks(monkeypatch):
    """Kept ones would have seven dimensions: rounds, blocks and `[B, G, R, L, S]`."""
    monkeypatch.setattr(attention_ring, 'KEY_BLOCK', 2)
    trace = on_mesh(gradients_of_a_model, context=4)
    program = trace(AttentionKernel.RING, remat='attention', trace=True)
    assert re.search(r'\[4,4,1,4,2\]', program), 'the scores of a block'
    assert not re.search(r'\[(\d+,){6}\d+\]', program)


def test_it_refuses_slots_of_a_cache():
    mask = AttentionMask(first_query_slot_B=jnp.zeros(B, jnp.int32))
    with pytest.raises(ValueError, match='ring attention takes no cache'):
        attend_ring(*inputs(length=8), ScoreOptions(mask=mask))


def test_it_refuses_a_cache():
    q, _, _ = inputs(length=8)
    _, k, v = inputs(length=16)
    with pytest.raises(ValueError, match='ring attention takes no cache'):
        attend_ring(q, k, v, ScoreOptions())


def test_dropout_needs_threefry():
    key = jax.random.key(0, impl='rbg')
    with pytest.raises(UserError, match='JAX_DEFAULT_PRNG_IMPL'):
        attend_ring(*inputs(length=8), ScoreOptions(dropout_rate=0.1, dropout_key=key))
