"""Products of experts with gradients of their own, which `jax.vmap` calls once per element."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def with_gradients(
    multiply: Callable[..., jax.Array], gradients: Callable[..., tuple[jax.Array, jax.Array]]
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Returns `multiply(x, kernel, sizes)` with the gradients of x and the kernel.

    `jax.vmap` of the result is a loop: `ragged_dot` has no rule for most batched arguments, and a
    batched `while` loop computes as many blocks for every element as for the longest.

    Args:
      multiply: `(x, kernel, sizes) -> y`.
      gradients: `(x, kernel, sizes, dy) -> (dx, dkernel)`.
    """
    multiply, gradients = _mapped(multiply), _mapped(gradients)

    @jax.custom_vjp
    def product(x, kernel, sizes):
        return multiply(x, kernel, sizes)

    def forward(x, kernel, sizes):
        return multiply(x, kernel, sizes), (x, kernel, sizes)

    def backward(saved, dy):
        return *gradients(*saved, dy), None

    product.defvjp(forward, backward)
    return product


def accumulator(dtype: Any) -> Any:
    """Returns the dtype of sums over values of `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` with `jax.lax.map` for its `jax.vmap`, nested ones included."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def call_each(axis_size, is_batched, *arrays):
        del axis_size

        def call(batched):
            rest = iter(batched)
            pairs = zip(arrays, is_batched, strict=True)
            return mapped(*(next(rest) if one else array for array, one in pairs))

        out = jax.lax.map(call, [a for a, one in zip(arrays, is_batched, strict=True) if one])
        return out, jax.tree.map(lambda _: True, out)

    return mapped
