"""The product of a mixture of experts on CPUs: blocks of rows, each with one expert's matrix.

Shapes are static, so a group of rows is covered by blocks of a few fixed sizes. There is one loop
per size, over exactly the blocks that the groups need. The cost follows the rows, not rows times
experts.

A block costs as much as its rows and about 48 more: XLA copies the expert's matrix out of the
stack, and the product packs it once more. So 250 rows are one block of 256, not four smaller ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gpt_jax.kernels.experts_vjp import accumulator, with_gradients

BLOCKS = (512, 256, 128, 64, 32)  # rows
OVERHEAD = 48  # of a block, in rows; measured with matrices of 256 x 1,024 and 384 x 1,536


class _Block(NamedTuple):
    """A block of rows: its expert, its first row, and the rows that it owns."""

    expert: Int[Array, '']
    first: Int[Array, '']
    owned_N1: Bool[Array, 'N 1']


def multiply_blocked(
    x_TD: Float[Array, 'T D'], kernel_EDF: Float[Array, 'E D F'], sizes_E: Int[Array, ' E']
) -> Float[Array, 'T F']:
    """Computes the product in blocks of rows of one expert each."""
    return _multiply(x_TD, kernel_EDF, sizes_E)


def _product(x_TD, kernel_EDF, sizes_E):
    def add(block: _Block, y_TF):
        kernel_DF = _at(kernel_EDF, block.expert)
        return _write(y_TF, block, _dot(_rows(x_TD, block), kernel_DF, 1, 0))

    y_TF = jnp.zeros((x_TD.shape[0], kernel_EDF.shape[2]), x_TD.dtype)
    return _for_each_block(sizes_E, x_TD.shape[0], add, y_TF)


def _gradients(x_TD, kernel_EDF, sizes_E, dy_TF):
    def add(block: _Block, sums):
        dx_TD, dkernel_EDF = sums
        dy_NF = _rows(dy_TF, block)
        dx_TD = _write(dx_TD, block, _dot(dy_NF, _at(kernel_EDF, block.expert), 1, 1))
        x_ND = jnp.where(block.owned_N1, _rows(x_TD, block), 0)
        dkernel_DF = _at(dkernel_EDF, block.expert) + _dot(x_ND, dy_NF, 0, 0)
        return dx_TD, jax.lax.dynamic_update_index_in_dim(dkernel_EDF, dkernel_DF, block.expert, 0)

    sums = jnp.zeros_like(x_TD), jnp.zeros(kernel_EDF.shape, accumulator(kernel_EDF.dtype))
    dx_TD, dkernel_EDF = _for_each_block(sizes_E, x_TD.shape[0], add, sums)
    return dx_TD, dkernel_EDF.astype(kernel_EDF.dtype)


_multiply = with_gradients(_product, _gradients)


def _for_each_block(
    sizes_E: Int[Array, ' E'], rows: int, body: Callable[[_Block, Any], Any], carry: Any
) -> Any:
    """Returns the carry after `carry = body(block, carry)` for each block of each group."""
    if not rows:
        return carry
    blocks, counts_ES = count_blocks(sizes_E, rows)
    ends_E = jnp.cumsum(sizes_E)
    starts_E = ends_E - sizes_E  # later: the first row that no larger block has
    for size, counts_E in zip(blocks, counts_ES.T, strict=True):
        last_E = jnp.cumsum(counts_E)

        def run(i, carry, size=size, starts_E=starts_E, counts_E=counts_E, last_E=last_E):
            expert = jnp.searchsorted(last_E, i, side='right')
            start = starts_E[expert] + size * (i - last_E[expert] + counts_E[expert])
            first = jnp.minimum(start, rows - size)  # the array ends inside the last block
            row_N1 = first + jnp.arange(size, dtype=first.dtype)[:, None]
            owned_N1 = (start <= row_N1) & (row_N1 < ends_E[expert])
            return body(_Block(expert, first, owned_N1), carry)

        carry = jax.lax.fori_loop(0, last_E[-1], run, carry)
        starts_E += size * counts_E
    return carry


def count_blocks(sizes_E: Int[Array, ' E'], rows: int) -> tuple[list[int], Int[Array, 'E S']]:
    """Returns the sizes of blocks in `rows` rows, and how many of each size every group gets."""
    blocks = [size for size in BLOCKS if size <= rows] or [max(rows, 1)]
    largest, unit = blocks[0], blocks[-1]
    rest_E = sizes_E % largest
    counts_ES = jnp.asarray(_cheapest(tuple(blocks)))[-(-rest_E // unit)]
    return blocks, counts_ES.at[:, 0].add(sizes_E // largest)


@functools.cache
def _cheapest(blocks: tuple[int, ...]) -> np.ndarray:
    """Returns the cheapest counts of blocks for 0, 1, 2 … of the smallest blocks' rows."""
    unit = blocks[-1]
    best = [(0, np.zeros(len(blocks), np.int32))]
    for units in range(1, blocks[0] // unit + 1):
        options = []
        for i, size in enumerate(blocks):
            cost, counts = best[max(0, units - size // unit)]
            options.append((cost + size + OVERHEAD, counts + (np.arange(len(blocks)) == i)))
        best.append(min(options, key=lambda option: option[0]))
    return np.stack([counts for _, counts in best]).astype(np.int32)


def _at(stack_EDF: jax.Array, expert: jax.Array) -> Float[Array, 'D F']:
    return jax.lax.dynamic_index_in_dim(stack_EDF, expert, 0, keepdims=False)


def _rows(array_TX: jax.Array, block: _Block) -> Float[Array, 'N X']:
    return jax.lax.dynamic_slice_in_dim(array_TX, block.first, len(block.owned_N1))


def _write(array_TX: jax.Array, block: _Block, rows_NX: jax.Array) -> Float[Array, 'T X']:
    """Returns the array with the rows that the block owns replaced."""
    rows_NX = jnp.where(block.owned_N1, rows_NX.astype(array_TX.dtype), _rows(array_TX, block))
    return jax.lax.dynamic_update_slice_in_dim(array_TX, rows_NX, block.first, 0)


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    return jax.lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        preferred_element_type=accumulator(a.dtype),
    )
