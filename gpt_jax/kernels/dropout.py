"""Dropout, also for a block of an array that is sharded over devices.

A block gets the bits that it has in the full array, so the mask does not depend on the mesh.
Threefry makes this possible: the bits of an entry depend only on the key and on the entry's flat
index (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405).
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

    The mask is drawn for the whole batch, whose rows are the first dimension. If `x` is a block of
    a larger array, the mask equals the same block of the larger array's mask.

    Args:
      key: None: no dropout.
      start: index of the block's first entry in the larger array, without the batch dimension.
      whole: shape of the larger array, without the batch dimension.
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
    """Returns the block of `jax.random.bernoulli(key, p, whole)` at `start`, of this `shape`.

    Draws the block's bits only. Equal bit for bit under `jax_threefry_partitionable`, JAX's
    default.

    Raises:
        UserError: the key is of a generator other than threefry.
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
    # Each of the 2**23 float32 numbers in [1, 2) is equally likely, as in `jax.random`.
    fraction = (words[0] ^ words[1]) >> 9 | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(fraction, jnp.float32) - 1.0 < jnp.float32(p)


def _flat_index(
    shape: Sequence[int], *, start: Sequence[int | jax.Array], whole: Sequence[int]
) -> tuple[UInt32[Array, '...'], UInt32[Array, '...']]:
    """Returns each entry's flat index in the `whole` array, as its low and high 32 bits."""
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
