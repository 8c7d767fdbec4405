"""The product of activations and a kernel, with gradients written as one CPU multiplies fastest.

XLA's CPU products read the second matrix of `a @ b` row by row. Where a gradient asks for it
column by column, or for a result that is taller than wide, they run at half to four fifths of
their speed: there the transposition is made first, as a copy that costs less. Other backends fold
transpositions into their products for nothing, and a kernel that is split over devices would be
gathered once more for its copy: both get the plain form.
"""

import jax
from jaxtyping import Array, Float

_stored = jax.lax.optimization_barrier  # else XLA folds the transposition into the product


@jax.custom_vjp
def product(x: Float[Array, '... I'], kernel_IO: Float[Array, 'I O']) -> Float[Array, '... O']:
    """`x @ kernel`, in the dtype of both; accumulated as the backend does."""
    return _contract(x, kernel_IO, x.ndim - 1, 0)


def _forward(x, kernel_IO):
    return _contract(x, kernel_IO, x.ndim - 1, 0), (x, kernel_IO)


def _backward(saved, dy):
    x, kernel_IO = saved
    dy_NO, x_NI = (a.reshape(-1, a.shape[-1]) for a in (dy, x))
    if jax.sharding.get_abstract_mesh().size > 1:
        return _dx(dy, kernel_IO), _dkernel(x_NI, dy_NO)
    return (
        jax.lax.platform_dependent(dy, kernel_IO, cpu=_cpu_dx, default=_dx),
        jax.lax.platform_dependent(x_NI, dy_NO, cpu=_cpu_dkernel, default=_dkernel),
    )


def _dx(dy, kernel_IO):
    return _contract(dy, kernel_IO, dy.ndim - 1, 1)


def _cpu_dx(dy, kernel_IO):
    return _contract(dy, _stored(kernel_IO.T), dy.ndim - 1, 0)


def _dkernel(x_NI, dy_NO):
    return _contract(x_NI, dy_NO, 0, 0)


def _cpu_dkernel(x_NI, dy_NO):
    if x_NI.shape[1] <= dy_NO.shape[1]:
        return _dkernel(x_NI, dy_NO)
    return _stored(_dkernel(dy_NO, x_NI)).T


def _contract(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    return jax.lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=a.dtype
    )


product.defvjp(_forward, _backward)
