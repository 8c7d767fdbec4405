"""`x @ kernel`, with gradients in the form that is fastest on CPUs.

XLA's CPU products read the second matrix of `a @ b` by rows. A gradient that reads it by columns,
or whose result is taller than wide, runs at half to four fifths of full speed. A transposed copy
costs less, so it is made first. YNNPACK, which multiplies bfloat16, reads the second matrix in
either order but the first by rows only. Other backends transpose within the product at no cost, and
a sharded kernel would be gathered once more for its copy. Both use the plain form.
"""

import functools
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

stored = jax.lax.optimization_barrier  # else XLA folds the transposition into the product


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(
    x: Float[Array, '... I'], kernel_IO: Float[Array, 'I O'], operands: Any = None
) -> Float[Array, '... O']:
    """Computes `x @ kernel` in the dtype of both; the backend chooses the accumulator.

    If `operands` is given, both are first rounded to that dtype. In the backward pass the incoming
    gradient is rounded the same way.
    """
    return _forward(x, kernel_IO, operands)[0]


def _forward(x, kernel_IO, operands):
    a, b = _round(x, operands), _round(kernel_IO, operands)
    return _contract(a, b, x.ndim - 1, 0, x.dtype), (a, b)


def _backward(operands, saved, dy):
    x, kernel_IO = saved
    dtype, dy = dy.dtype, _round(dy, operands)
    dy_NO, x_NI = (a.reshape(-1, a.shape[-1]) for a in (dy, x))
    dx, dkernel = (functools.partial(f, dtype=dtype) for f in (_dx, _dkernel))
    if jax.sharding.get_abstract_mesh().size > 1:
        return dx(dy, kernel_IO), dkernel(x_NI, dy_NO)
    if dy.dtype == dtype:
        cpu_dx, cpu_dkernel = _cpu_dx, _cpu_dkernel
    else:
        cpu_dx, cpu_dkernel = dx, functools.partial(_ynnpack_dkernel, dtype=dtype)
    return (
        jax.lax.platform_dependent(dy, kernel_IO, cpu=cpu_dx, default=dx),
        jax.lax.platform_dependent(x_NI, dy_NO, cpu=cpu_dkernel, default=dkernel),
    )


def _dx(dy, kernel_IO, dtype):
    return _contract(dy, kernel_IO, dy.ndim - 1, 1, dtype)


def _dkernel(x_NI, dy_NO, dtype):
    return _contract(x_NI, dy_NO, 0, 0, dtype)


def _cpu_dx(dy, kernel_IO):
    return _contract(dy, stored(kernel_IO.T), dy.ndim - 1, 0, dy.dtype)


def _cpu_dkernel(x_NI, dy_NO):
    if x_NI.shape[1] <= dy_NO.shape[1]:
        return _dkernel(x_NI, dy_NO, dy_NO.dtype)
    return stored(_dkernel(dy_NO, x_NI, dy_NO.dtype)).T


def _ynnpack_dkernel(x_NI, dy_NO, dtype):
    by_rows = Layout(major_to_minor=(0, 1))  # a barrier alone leaves it to XLA's own products
    return _contract(with_layout_constraint(x_NI.T, by_rows), dy_NO, 1, 0, dtype)


def _round(x: jax.Array, dtype: Any) -> jax.Array:
    return x if dtype is None else x.astype(dtype)


def _contract(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int, dtype: Any) -> jax.Array:
    return jax.lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=dtype
    )


matmul.defvjp(_forward, _backward)
