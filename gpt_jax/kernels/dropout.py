"""Dropout, also of a part of an array that no device holds whole.

The bits are those that the whole array would get, wherever it is cut, so that what dropout keeps
does not depend on the mesh. Threefry makes this possible: the bits of an entry follow from the
key and the entry's flat index alone (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float, Key, UInt32

from gpt_jax.errors import UserError
from gpt_jax.kernels.shard_map import batch_part

WORD = 2**32


def dropout(
    x: Float[Array, '...'],
    rate: float,
    key: Key[Array, ''] | None,
    *,
    start: tuple[int, ...] | None = None,
    whole: tuple[int, ...] | None = None,
) -> Float[Array, '...']:
    """Zeroes entries with probability `rate` and scales the rest; without a key, does nothing.

    The mask is drawn for the whole batch, whose rows are the first dimension. Where `x` is a block
    of a larger array, the mask equals the same block of the larger array's mask.

    Args:
      key: None: no dropout.
      start: index of the block's first entry in the larger array, without the rows.
      whole: shape of the larger array, without the rows.
    """
    if key is None or rate == 0.0:
        return x
    part, parts = batch_part()
    with jax.named_scope('dropout'):
        if parts == 1 and whole is None:
            keep = jax.random.bernoulli(key, 1 - rate, x.shape)
        else:
            rows, *rest = x.shape
            keep = bernoulli_block(
                key,
                1 - rate,
                x.shape,
                start=(part * rows, *(start or [0] * len(rest))),
                whole=(parts * rows, *(whole or rest)),
            )
        return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def bernoulli_block(
    key: Key[Array, ''],
    p: float,
    shape: Sequence[int],
    *,
    start: Sequence[int | jax.Array],
    whole: Sequence[int],
) -> Bool[Array, '...']:
    """`jax.random.bernoulli(key, p, whole)` from index `start` on, in this `shape`.

    Draws the block's bits only. Equal bit for bit under `jax_threefry_partitionable`, JAX's
    default.

    Raises:
        UserError: the key is not threefry's.
    """
    implementation = jax.random.key_impl(key)
    if implementation != 'threefry2x32':
        raise UserError(
            f'dropout over several devices needs JAX_DEFAULT_PRNG_IMPL=threefry2x32, '
            f'not {implementation}'
        )
    low, high = _flat_index(shape, start=start, whole=whole)
    key_words = jax.random.key_data(key)
    words = threefry2x32_p.bind(key_words[0], key_words[1], high, low)
    # Equal weight for each of the 2**23 fractions of a float32 in [1, 2), as in `jax.random`.
    fraction = (words[0] ^ words[1]) >> 9 | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(fraction, jnp.float32) - 1.0 < jnp.float32(p)


def _flat_index(
    shape: Sequence[int], *, start: Sequence[int | jax.Array], whole: Sequence[int]
) -> tuple[UInt32[Array, '...'], UInt32[Array, '...']]:
    """Where each entry of a block stands in the `whole` array: the low and high 32 bits."""
    ndim, size = len(shape), 1
    low = high = jnp.zeros((1,) * ndim, jnp.uint32)
    for axis, (length, first, extent) in enumerate(zip(shape, start, whole, strict=True)):
        at = jnp.arange(length, dtype=jnp.uint32) + jnp.asarray(first).astype(jnp.uint32)
        at = at.reshape([-1 if i == axis else 1 for i in range(ndim)])
        size *= extent
        if size > WORD:  # the two words of `index * extent + at`
            extent = jnp.uint32(extent)
            high = high * extent + jax.lax.mulhi(low, jnp.broadcast_to(extent, low.shape))
            low = low * extent + at
            high = jnp.broadcast_to(high, low.shape) + (low < at)
        else:
            low = low * jnp.uint32(extent) + at
    return low, jnp.broadcast_to(high, low.shape)
