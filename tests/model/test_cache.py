"""The cache of rows with lengths of their own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.kernels.scores import AttentionMask, ScoreOptions
from gpt_jax.model.attention.attend import attend
from gpt_jax.model.attention.layer_cache import LayerCache
from gpt_jax.model.cache import KVCache


def test_each_row_writes_at_its_own_slot_or_not_at_all():
    old = jnp.zeros((3, 2, 5, 4))
    new = jnp.arange(1, 3 * 2 * 2 * 4 + 1, dtype=jnp.float32).reshape(3, 2, 2, 4)
    cache = jax.jit(LayerCache.write)(LayerCache({'key': old}), jnp.array([0, 3, 4]), key=new)
    expected = np.zeros((3, 5, 2, 4))
    expected[0, 0:2], expected[1, 3:5] = new[0], new[1]  # the last row has room for one of two
    np.testing.assert_array_equal(cache.read('key'), expected)


def test_rows_keep_what_fits_another_size():
    arrays = jnp.arange(2 * 6, dtype=jnp.float32).reshape(2, 1, 6, 1)
    cache = KVCache((LayerCache({'key': arrays}),), jnp.array([2, 6]))
    small, large = cache.resize(4), cache.resize(9)
    np.testing.assert_array_equal(small.layers[0].arrays['key'], arrays[:, :, :4])
    assert small.length_B.tolist() == [2, 4]
    np.testing.assert_array_equal(large.layers[0].arrays['key'][:, :, :6], arrays)
    assert large.layers[0].arrays['key'].shape == (2, 1, 9, 1)
    assert large.length_B.tolist() == [2, 6]


@pytest.mark.parametrize('rows', [1, 3])
def test_a_loop_of_tokens_does_not_copy_the_cache(rows):
    """Each array is copied once, before the loop, because it is not donated here."""
    G, S, K = 2, 256, 32

    def step(number, carry):
        x_B1GK, cache = carry
        slot_B = jnp.full(rows, number)
        cache = cache.write(slot_B, key=x_B1GK, value=2 * x_B1GK)
        options = ScoreOptions(mask=AttentionMask(first_query_slot_B=slot_B))
        return attend(x_B1GK, cache.read('key'), cache.read('value'), options), cache

    def run(x_B1GK, zeros):
        cache = LayerCache({'key': zeros, 'value': zeros + 1})
        x_B1GK, cache = jax.lax.fori_loop(0, 100, step, (x_B1GK, cache))
        return x_B1GK, cache.arrays

    program = jax.jit(run).lower(jnp.ones((rows, 1, G, K)), jnp.zeros((rows, G, S, K))).compile()
    copies = re.findall(rf'= f32\[[\d,]*{S},{K}\]\S* copy\(', program.as_text())
    assert len(copies) <= 2
