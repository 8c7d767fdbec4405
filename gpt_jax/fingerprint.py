"""32-bit fingerprints of the arrays in a tree, by which checkpoints are verified."""

from typing import Any

import jax
import jax.numpy as jnp


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path, `params/blocks/attention/query/kernel`, in order."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}
    if len(named) != len(pairs):
        raise ValueError(f'two leaves of the tree have the same path: {sorted(named)}')
    return named


def fingerprint_leaves(tree: Any) -> dict[str, int]:
    """Returns the fingerprint of each leaf by path; it does not depend on the sharding.

    A leaf's fingerprint is the sum modulo 2^32 over its elements of a hash of (bits, position).
    For one position the hash is a bijection, so a change of one element is always detected. Any
    other change, such as swapped elements, is missed with probability 2^-32.
    """
    # One after the other: on CPUs the hashes of a leaf take as much memory as the leaf.
    return {name: int(_fingerprint(leaf)) for name, leaf in named_leaves(tree).items()}


@jax.jit
def _fingerprint(x: jax.Array) -> jax.Array:
    bits = _bits(x)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position * jnp.uint32(size % 2**32) + index
    # Multiplying bits by the position would be cheaper, but would miss swaps at some distances of
    # weights whose low bits are zero (bfloat16 values, powers of two).
    return jnp.sum(_mix(bits ^ _mix(position)), dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
    """Returns the bits of each element as uint32; as two, on a new last axis, for 64 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Applies a bijection of uint32 in which every input bit affects every output bit.

    The finaliser of MurmurHash3 (https://github.com/aappleby/smhasher) after an offset, because
    the finaliser maps 0 to 0.
    """
    x = x + jnp.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
