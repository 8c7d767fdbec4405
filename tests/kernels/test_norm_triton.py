"""The Triton norm kernels, interpreted on the CPU, against the reference; and their choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from gpt_jax.errors import UserError
from gpt_jax.kernels.norm import choose_norm_kernel
from gpt_jax.kernels.norm_triton import normalize_triton
from gpt_jax.model.config import NormKernel
from gpt_jax.model.norm import normalize

interpreted = functools.partial(normalize_triton, interpret=True)
SHAPES = {
    'one tile': (8, 128),
    'rows and columns end inside a tile': (70, 48),
    'more rows than one program takes': (130, 200),
    'batch and sequence apart': (2, 33, 96),
}


def results(normalize, shape, *, centred, use_bias, dtype=jnp.float32):
    """The two outputs and the gradients of all inputs, for random cotangents of both."""
    draw = np.random.default_rng(shape[-1])

    def normal(*shape):
        return jnp.asarray(draw.standard_normal(shape), dtype)

    inputs = [2 * normal(*shape) + 1, normal(shape[-1])]
    if use_bias:
        inputs.append(normal(shape[-1]))

    def function(x, scale, bias=None):
        return normalize(x, scale, bias, epsilon=1e-5, centred=centred)

    outputs, vjp = jax.vjp(function, *inputs)
    return *outputs, *vjp((normal(*shape), normal(*shape)))


def assert_close(actual, expected, *, tolerance):
    """Relative to the largest entry."""
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize('use_bias', [True, False])
@pytest.mark.parametrize('centred', [True, False])
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_equals_the_reference(shape, centred, use_bias):
    options = dict(shape=shape, centred=centred, use_bias=use_bias)
    assert_close(results(interpreted, **options), results(normalize, **options), tolerance=1e-6)


def test_rounds_once_in_bfloat16():
    options = dict(shape=(70, 48), centred=True, use_bias=True)
    rounded = results(interpreted, **options, dtype=jnp.bfloat16)
    exact = results(normalize, **options)
    assert_close([x.astype(jnp.float32) for x in rounded], exact, tolerance=2**-7)


def test_devices_work_on_their_own_rows():
    mesh = jax.make_mesh((2, 2), ('data', 'context'), axis_types=(AxisType.Auto,) * 2)
    rules = (('batch', 'data'), ('length', 'context'), ('embed', None), ('activation', None))
    options = dict(shape=(4, 66, 48), centred=True, use_bias=True)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        split = jax.jit(lambda: results(interpreted, **options))()
    assert_close(split, results(normalize, **options), tolerance=1e-6)


def test_is_chosen_on_a_gpu_alone():
    assert choose_norm_kernel('auto', backend='gpu') == NormKernel.TRITON
    assert {choose_norm_kernel('auto', backend=name) for name in ('cpu', 'tpu')} == {NormKernel.XLA}
    with pytest.raises(
        UserError, match='config.model.execution.norm_kernel=triton cannot run: the backend'
    ):
        choose_norm_kernel('triton', backend='cpu')


def test_lowers_for_a_gpu():
    x, vector = jax.ShapeDtypeStruct((64, 768), jnp.bfloat16), jax.ShapeDtypeStruct((768,), float)

    def loss(x, scale, bias):
        y, x = normalize_triton(x, scale, bias, epsilon=1e-5, centred=True)
        return (y * x).sum()

    h100 = AbstractDevice('NVIDIA H100 80GB HBM3', None, 'gpu')
    mesh = AbstractMesh((1,), ('data',), axis_types=(AxisType.Auto,), abstract_device=h100)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, vector, vector)
        text = traced.lower(lowering_platforms=('cuda',)).as_text()
    assert text.count('stablehlo.custom_call @') == 2
