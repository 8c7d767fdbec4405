"""The product with a matrix of 8-bit integers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.kernels.matmul_int8 import Int8Matrix, _product, multiply

INPUTS, OUTPUTS = 48, 20


@pytest.fixture
def matrix():
    random = np.random.default_rng(0)
    values = random.integers(-127, 128, (OUTPUTS, INPUTS)).astype(np.int8)
    return Int8Matrix(
        jnp.asarray(values), jnp.asarray(random.uniform(0.1, 2, OUTPUTS), jnp.float32)
    )


def rows(count):
    return np.random.default_rng(1).normal(size=(count, INPUTS)).astype(np.float32)


def expected(x, matrix):
    return x.astype(np.float64) @ (np.float64(matrix.values_OI) * matrix.scale_O[:, None]).T


def test_activations_keep_16_bits(matrix):
    """An activation is off by at most half of 1/254 of 1/127 of the largest of its row."""
    x = rows(9) * np.logspace(-6, 6, 9, dtype=np.float32)[:, None]
    error = np.abs(np.asarray(multiply(x, matrix)) - expected(x, matrix))
    unit = np.abs(x).max(1, keepdims=True) / 127 / 254
    sums = np.abs(np.float64(matrix.values_OI)).sum(1) * np.asarray(matrix.scale_O)
    assert (error <= unit * 0.51 * sums).all()
    assert (error > 0).any()
    assert (error < 1e-4 * np.abs(expected(x, matrix)).max(1, keepdims=True)).all()


def test_a_row_does_not_depend_on_the_others(matrix):
    """But for the last bit, where the sums of both parts are added."""
    x = rows(40)
    same = functools.partial(np.testing.assert_allclose, rtol=3e-7)
    together = np.asarray(jax.jit(multiply)(x, matrix))
    for count in (1, 2, 3, 17):
        same(jax.jit(multiply)(x[:count], matrix), together[:count])
    same(multiply(x.reshape(4, 10, INPUTS), matrix).reshape(40, OUTPUTS), together)


def test_zeros_and_types(matrix):
    assert not np.asarray(multiply(jnp.zeros((2, INPUTS)), matrix)).any()
    x = jnp.asarray(rows(3), jnp.bfloat16)
    assert multiply(x, matrix).dtype == jnp.bfloat16
    result = multiply(x, matrix, jnp.float32)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected(np.float32(x), matrix), rtol=1e-2, atol=0.1)
    assert np.isnan(np.asarray(multiply(jnp.full((1, INPUTS), jnp.nan), matrix))).all()


def test_the_form_of_other_backends(matrix):
    x = rows(5)
    result = _product(jnp.asarray(x), matrix.values_OI) * matrix.scale_O[None]
    np.testing.assert_allclose(result, expected(x, matrix), rtol=1e-4, atol=1e-2)


def test_rows_of_a_table(matrix):
    index = jnp.array([[3, 0], [19, 3]])
    table = np.float32(matrix.values_OI) * np.float32(matrix.scale_O)[:, None]
    np.testing.assert_allclose(matrix.rows(index), table[np.asarray(index)], rtol=1e-6)
