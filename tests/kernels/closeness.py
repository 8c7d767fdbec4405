"""Closeness of a kernel's values and gradients to those of the plain function."""

import jax.numpy as jnp
import numpy as np

TOLERANCE = 1e-5  # of the largest entry, in float32: both accumulate in it, in another order


def assert_close(actual, expected, *, tolerance=TOLERANCE):
    """Compares relative to the largest entry; a true gradient of zero has none of its own."""
    largest = max(float(jnp.abs(b).max()) for b in expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        scale = max(np.abs(b).max(), 0.1 * largest)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)
