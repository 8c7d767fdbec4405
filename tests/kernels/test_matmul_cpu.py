"""The linear product's gradients are those of `x @ kernel`, however a backend writes them."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.kernels.matmul_cpu import matmul
from gpt_jax.model.linear import Linear
from gpt_jax.parallel.compiler_options import compiler_options
from tests.model_configs import make_config

CPU = pathlib.Path('/proc/cpuinfo')


def _loss(multiply, x, kernel):
    return jnp.sin(multiply(x, kernel)).sum()


def _arrays(inputs, outputs, dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), (2, 5, inputs), dtype)
    return x, jax.random.normal(jax.random.key(1), (inputs, outputs), dtype)


@pytest.mark.parametrize('inputs,outputs', [(8, 24), (24, 8), (8, 8)])
def test_gradients_are_those_of_the_plain_product(inputs, outputs):
    x, kernel = _arrays(inputs, outputs)
    ours, plain = (
        jax.jit(jax.grad(lambda *arrays, f=f: _loss(f, *arrays), (0, 1)))(x, kernel)
        for f in (matmul, jnp.matmul)
    )
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('inputs,outputs', [(8, 24), (24, 8)])
def test_rounded_operands(inputs, outputs):
    """Operands are rounded once, gradients too; sums and results are not."""
    x, kernel = _arrays(inputs, outputs)
    dy = jax.random.normal(jax.random.key(2), (2, 5, outputs))

    def low(array):
        return np.asarray(array.astype(jnp.bfloat16), np.float64)

    @jax.jit
    def run(x, kernel, dy):
        y, backward = jax.vjp(lambda x, kernel: matmul(x, kernel, jnp.bfloat16), x, kernel)
        return y, *backward(dy)

    rows = low(x).reshape(-1, inputs)
    expected = (
        low(x) @ low(kernel),
        low(dy) @ low(kernel).T,
        rows.T @ low(dy).reshape(-1, outputs),
    )
    for found, wanted in zip(run(x, kernel, dy), expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)


def test_the_config_says_what_linear_layers_multiply():
    x, _ = _arrays(32, 8)
    config = make_config()
    layers = [
        Linear(
            dataclasses.replace(config, matmul_precision=precision), (32,), (8,), ('a', 'b'), False
        )
        for precision in ('default', 'bfloat16')
    ]
    variables = nn.unbox(layers[0].init(jax.random.key(0), x))
    kernel = variables['params']['kernel']
    for layer, operands in zip(layers, (None, jnp.bfloat16), strict=True):
        np.testing.assert_array_equal(
            layer.apply(variables, x), matmul(x, kernel, operands), strict=True
        )
    assert (layers[0].apply(variables, x) != layers[1].apply(variables, x)).any()


@pytest.mark.skipif(
    not (CPU.is_file() and 'avx512_bf16' in CPU.read_text()),
    reason='this processor does not multiply bfloat16',
)
def test_a_cpu_multiplies_bfloat16_by_its_library():
    """All three products; what XLA makes of them itself is half as fast."""
    x, kernel = _arrays(128, 256)

    def gradients(x, kernel):
        return jax.grad(lambda *a: _loss(lambda *b: matmul(*b, jnp.bfloat16), *a), (0, 1))(
            x, kernel
        )

    options = compiler_options('cpu', deterministic=False, bfloat16_products=True)
    compiled = jax.jit(gradients, compiler_options=options).lower(x, kernel).compile()
    assert compiled.as_text().count('"__ynn_fusion"') == 3


def test_the_dtype_is_that_of_the_arrays():
    x, kernel = _arrays(8, 24, jnp.bfloat16)
    assert matmul(x, kernel).dtype == jnp.bfloat16
    gradients = jax.grad(lambda *arrays: _loss(matmul, *arrays).astype(jnp.float32), (0, 1))
    assert {g.dtype for g in gradients(x, kernel)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('platform,barriers', [('cpu', 2), ('cuda', 0), ('tpu', 0)])
def test_only_cpus_transpose_first(platform, barriers):
    """For a tall kernel: its own transposition, and that of its gradient."""
    gradients = jax.jit(jax.grad(lambda *arrays: _loss(matmul, *arrays), (0, 1)))
    lowered = gradients.trace(*_arrays(24, 8)).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count('optimization_barrier') == barriers


def test_a_mesh_of_several_devices_keeps_the_plain_form():
    gradients = jax.jit(jax.grad(lambda *arrays: _loss(matmul, *arrays), (0, 1)))
    with jax.set_mesh(jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])):
        assert 'optimization_barrier' not in gradients.lower(*_arrays(24, 8)).as_text()
    assert 'optimization_barrier' in gradients.lower(*_arrays(24, 8)).as_text()
