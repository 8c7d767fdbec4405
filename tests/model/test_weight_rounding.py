"""Weights rounded to narrower types: bounds, scales, and what stays as it is."""

import jax
import numpy as np
import pytest

from gpt_jax.fingerprint import named_leaves
from gpt_jax.model.weight_rounding import RoundedType, quantize, round_weights
from tests.weights.random_source import LLAMA, make_model, random_params


def test_int8_is_symmetric_with_a_scale_per_output():
    matrix = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    matrix[..., 2] *= 100
    matrix[:, 1, 3] = 0
    values, scale = quantize(matrix, (0,))
    assert values.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (1, 5, 4)
    np.testing.assert_allclose(scale[0], np.abs(matrix).max(0) / 127, rtol=1e-6)
    assert int(np.abs(values).max()) == 127 and not values[:, 1, 3].any()
    assert (np.abs(values * scale - matrix) <= scale * 0.5001).all()
    np.testing.assert_array_equal(quantize(-matrix, (0,)).values, -values)


@pytest.mark.parametrize('dtype', RoundedType)
def test_weights_of_a_model(dtype):
    config = make_model(**LLAMA)
    params = random_params(config)
    before, after = named_leaves(params), named_leaves(round_weights(params, config, dtype))
    assert before.keys() == after.keys()
    for path, old in before.items():
        new = after[path]
        assert new.dtype == old.dtype and new.shape == old.shape
        if dtype == RoundedType.INT8 and path.split('/')[-1] in ('kernel', 'table'):
            # of the largest: of an output, so of the whole
            assert 0 < float(np.abs(new - old).max()) <= float(np.abs(old).max()) / 127 * 0.51
        elif dtype in (RoundedType.INT8, RoundedType.FLOAT32):
            np.testing.assert_array_equal(new, old)
        else:
            rounded = np.asarray(old).astype(jax.numpy.dtype(str(dtype))).astype(old.dtype)
            np.testing.assert_array_equal(new, rounded)


def test_heads_of_a_kernel_have_scales_of_their_own():
    """Also layers: one that is a thousand times larger does not coarsen the others."""
    config = make_model(**LLAMA)
    params = random_params(config)
    kernel = params['blocks']['attention']['query']['kernel']  # [N, D, H, K]
    params['blocks']['attention']['query']['kernel'] = kernel.at[0, :, 0].mul(1000)
    rounded = round_weights(params, config, 'int8')['blocks']['attention']['query']['kernel']
    assert float(np.abs(rounded - kernel)[1:].max()) < 0.01
    assert float(np.abs(rounded - kernel)[0, :, 1:].max()) < 0.01
