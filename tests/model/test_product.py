"""The linear product's gradients are those of `x @ kernel`, however a backend writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.product import product


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
        for f in (product, jnp.matmul)
    )
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_the_dtype_is_that_of_the_arrays():
    x, kernel = _arrays(8, 24, jnp.bfloat16)
    assert product(x, kernel).dtype == jnp.bfloat16
    gradients = jax.grad(lambda *arrays: _loss(product, *arrays).astype(jnp.float32), (0, 1))
    assert {g.dtype for g in gradients(x, kernel)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('platform,barriers', [('cpu', 2), ('cuda', 0), ('tpu', 0)])
def test_only_cpus_transpose_first(platform, barriers):
    """For a tall kernel: its own transposition, and that of its gradient."""
    gradients = jax.jit(jax.grad(lambda *arrays: _loss(product, *arrays), (0, 1)))
    lowered = gradients.trace(*_arrays(24, 8)).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count('optimization_barrier') == barriers


def test_a_mesh_of_several_devices_keeps_the_plain_form():
    gradients = jax.jit(jax.grad(lambda *arrays: _loss(product, *arrays), (0, 1)))
    with jax.set_mesh(jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])):
        assert 'optimization_barrier' not in gradients.lower(*_arrays(24, 8)).as_text()
    assert 'optimization_barrier' in gradients.lower(*_arrays(24, 8)).as_text()
