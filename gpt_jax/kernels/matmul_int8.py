"""`x @ matrix.T` with a matrix of 8-bit integers, for decoding.

Decoding reads every weight for each token, so fewer bytes are read sooner. On CPUs the activations
become integers too, each the sum of two 8-bit ones: 16 bits lose nothing that matters, and XLA's
CPU product of 8-bit integers is fast from two rows on. Sums of integers are exact, so a row's
result depends on the rows beside it in its last bit at most. Other backends convert the matrix
inside the product.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

LARGEST = 127  # -128 is not used
FINER = 254  # the second part of an activation counts in this fraction of the first part's unit


class Int8Matrix(NamedTuple):
    """A matrix whose row `o` is `values_OI[o] * scale_O[o]`."""

    values_OI: Int8[Array, 'O I']
    scale_O: Float[Array, 'O']

    def rows(self, index: jax.Array) -> Float[Array, '... I']:
        """Returns the rows of the indices, in float32."""
        return self.values_OI[index] * self.scale_O[index][..., None]


def multiply(
    x: Float[Array, '... I'], matrix: Int8Matrix, dtype: Any = None
) -> Float[Array, '... O']:
    """Computes `x @ matrix.T` in `dtype`, by default that of `x`; sums are float32 or exact."""
    x_RI = x.reshape(-1, x.shape[-1])
    y_RO = jax.lax.platform_dependent(
        x_RI, matrix.values_OI, cpu=_product_of_integers, default=_product
    )
    y_RO = (y_RO * matrix.scale_O[None]).astype(dtype or x.dtype)
    return y_RO.reshape(*x.shape[:-1], y_RO.shape[-1])


def _product(x_RI: Float[Array, 'R I'], values_OI: Int8[Array, 'O I']) -> Float[Array, 'R O']:
    return _contract(x_RI, values_OI.astype(x_RI.dtype), jnp.float32)


def _product_of_integers(
    x_RI: Float[Array, 'R I'], values_OI: Int8[Array, 'O I']
) -> Float[Array, 'R O']:
    unit_R1 = jnp.max(jnp.abs(x_RI), axis=1, keepdims=True).astype(jnp.float32) / LARGEST
    unit_R1 = jnp.where(unit_R1 == 0, 1, unit_R1)
    x_RI = x_RI / unit_R1
    coarse_RI = jnp.round(x_RI)
    fine_RI = jnp.round((x_RI - coarse_RI) * FINER)
    parts = jnp.concatenate([coarse_RI, fine_RI]).astype(jnp.int8)
    coarse_RO, fine_RO = jnp.split(_contract(parts, values_OI, jnp.int32).astype(jnp.float32), 2)
    return (coarse_RO + fine_RO / FINER) * unit_R1


def _contract(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
