"""A 32-bit fingerprint of every array in a tree: what a checkpoint is checked against."""

from typing import Any

import jax
import jax.numpy as jnp


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, `params/blocks/attention/query/kernel`, in tree order."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}
    if len(named) != len(pairs):
        raise ValueError(f'two leaves of the tree have the same path: {sorted(named)}')
    return named


def fingerprint_leaves(tree: Any) -> dict[str, int]:
    """The fingerprint of each leaf by path: equal for equal bits, however the leaf is sharded.

    A leaf's fingerprint is the sum modulo 2^32 over its elements of a hash of (bits, position).
    For one position the hash is a bijection, so a change within one element never goes
    unnoticed; any other change, such as swapped elements, does with probability 2^-32.
    """
    named = named_leaves(tree)
    sums = jax.device_get(_fingerprints(list(named.values())))
    return {name: int(value) for name, value in zip(named, sums, strict=True)}


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_fingerprint(leaf) for leaf in leaves]


@jax.jit  # traced once for all leaves of a shape
def _fingerprint(x: jax.Array) -> jax.Array:
    bits = _bits(x)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position * jnp.uint32(size % 2**32) + index
    # Multiplying bits by the position would be cheaper, but weights whose low bits are zero
    # (bfloat16 values, powers of two) could then be swapped at a distance unseen.
    return jnp.sum(_mix(bits ^ _mix(position)), dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
    """The bits of each element as uint32; 64-bit elements are two, on a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every bit of the input reaches every bit of the output.

    The finaliser of MurmurHash3 (https://github.com/aappleby/smhasher) after an offset, because
    the finaliser leaves 0 as it is.
    """
    x = x + jnp.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
