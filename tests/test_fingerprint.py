"""Fingerprints: what changes them and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.fingerprint import fingerprint_leaves, named_leaves

DTYPES = ['float32', 'bfloat16', 'float16', 'int32', 'uint32', 'int8', 'uint8', 'bool']


def of(x) -> int:
    return fingerprint_leaves({'x': x})['x']


def flipped(x: np.ndarray, *, byte: int, bit: int) -> jax.Array:
    data = bytearray(x.tobytes())
    data[byte] ^= 1 << bit
    return jnp.array(np.frombuffer(bytes(data), x.dtype).reshape(x.shape))


def test_leaves_are_named_by_path():
    tree = {'params': {'wte': 1, 'blocks': [2, (3, None)]}, 'ema': None}
    assert named_leaves(tree) == {
        'params/blocks/0': 2,
        'params/blocks/1/0': 3,
        'params/wte': 1,
    }
    with pytest.raises(ValueError, match='same path'):
        named_leaves({'a': {'b': 1}, 'a/b': 2})


@pytest.mark.parametrize('dtype', [dtype for dtype in DTYPES if dtype != 'bool'])
def test_every_single_bit_counts(dtype):
    x = np.asarray(jnp.arange(-3, 9).astype(dtype)).reshape(3, 4)
    seen = {of(jnp.array(x))}
    seen |= {of(flipped(x, byte=byte, bit=bit)) for byte in range(x.nbytes) for bit in range(8)}
    assert len(seen) == 1 + 8 * x.nbytes


def test_every_bool_and_every_scalar_counts():
    x = np.zeros(9, bool)
    assert len({of(x), *(of(x ^ (np.arange(9) == index)) for index in range(9))}) == 10
    assert len({of(jnp.uint32(value)) for value in range(20)}) == 20


@pytest.mark.parametrize('distance', [1, 2**8, 2**15, 2**16])
def test_swapped_elements_count_also_when_their_low_bits_are_zero(distance):
    x = jnp.full(2**17, 1.0).at[7].set(2.0)
    swapped = x.at[7].set(x[7 + distance]).at[7 + distance].set(x[7])
    assert of(x) != of(swapped)


def test_shape_and_position_count():
    assert of(jnp.zeros(4)) != of(jnp.zeros(5))
    x = jnp.arange(12.0).reshape(3, 4)
    assert of(x) != of(x.T)
    assert of(jnp.float32(0.0)) != of(jnp.float32(-0.0))


@pytest.mark.parametrize('dtype', DTYPES)
def test_the_sharding_does_not_count(dtype):
    x = jnp.arange(64).reshape(8, 8).astype(dtype)
    mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in [('a', 'b'), (('a', 'b'), None), (None, 'b')]:
        sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
        assert of(sharded) == of(x)


def test_the_fingerprint_of_a_known_array_never_changes():
    """Checkpoints on disk hold these numbers: a change here makes every one of them damaged."""
    assert of(jnp.arange(10, dtype=jnp.float32)) == 2975344807
    assert of(jnp.arange(10).astype(jnp.bfloat16).reshape(2, 5)) == 391432714


def mixed(x: int) -> int:
    x = (x + 0x9E3779B9) % 2**32
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def test_the_formula_in_plain_python():
    x = np.array([[0.5, -1.25, 3e38], [0.0, -0.0, 1e-40]], np.float32)
    expected = sum(mixed(int(b) ^ mixed(i)) for i, b in enumerate(x.view(np.uint32).ravel()))
    assert of(x) == expected % 2**32
