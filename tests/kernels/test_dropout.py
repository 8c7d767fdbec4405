"""Blocks of random masks against the whole arrays that they are cut from."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.kernels.dropout import _flat_index, bernoulli_block

KEY = jax.random.key(11)


@pytest.mark.parametrize('p', [0.1, 0.9])
def test_the_blocks_make_up_the_whole(p):
    whole, shape = (4, 3, 6, 10), (2, 3, 2, 5)
    expected = np.asarray(jax.random.bernoulli(KEY, p, whole))
    block = jax.jit(lambda *start: bernoulli_block(KEY, p, shape, start=start, whole=whole))
    for start in itertools.product(*(range(0, w, s) for w, s in zip(whole, shape, strict=True))):
        cut = tuple(slice(i, i + s) for i, s in zip(start, shape, strict=True))
        np.testing.assert_array_equal(block(*start), expected[cut])
    assert abs(expected.mean() - p) < 0.05


@pytest.mark.parametrize(
    'whole',
    [(3, 2**31, 5), (2**20, 3, 2**20), (2**16, 2**16, 1), (2**16, 2**16, 2), (1, 7, 2**32 - 5)],
)
def test_indices_beyond_32_bits(whole):
    """Such arrays do not fit here, so that the last block's indices are compared instead."""
    shape = [min(3, extent) for extent in whole]
    start = [extent - length for extent, length in zip(whole, shape, strict=True)]
    first = [jnp.uint32(i) for i in start]
    low, high = jax.jit(lambda: _flat_index(shape, start=first, whole=whole))()
    offsets = np.ndindex(*shape)
    at = [[i + o for i, o in zip(start, offset, strict=True)] for offset in offsets]
    expected = [(a * whole[1] + b) * whole[2] + c for a, b, c in at]
    actual = np.asarray(high, object) * 2**32 + np.asarray(low, object)
    assert actual.ravel().tolist() == expected


def test_another_generator_is_refused():
    key = jax.random.key(0, impl='rbg')
    with pytest.raises(UserError, match='JAX_DEFAULT_PRNG_IMPL=threefry2x32, not rbg'):
        bernoulli_block(key, 0.5, (2,), start=(0,), whole=(4,))
