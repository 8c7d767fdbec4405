"""The key/value cache for decoding: keys and values of earlier tokens."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.model.config import ModelConfig


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one layer; slots beyond the cache's length are masked.

    Heads come before slots, because the batched products of attention read them in this order.
    Otherwise XLA transposes the whole cache for every token.
    """

    key_BGSK: Float[Array, 'B G S K']
    value_BGSK: Float[Array, 'B G S K']

    @property
    def key_BSGK(self) -> Float[Array, 'B S G K']:
        """The keys as attention takes them."""
        return self.key_BGSK.swapaxes(1, 2)

    @property
    def value_BSGK(self) -> Float[Array, 'B S G K']:
        """The values as attention takes them."""
        return self.value_BGSK.swapaxes(1, 2)

    def write(self, k_BLGK: jax.Array, v_BLGK: jax.Array, slot: jax.Array) -> 'LayerCache':
        """Returns the cache with `L` new keys and values from `slot` on."""
        start = (0, 0, slot, 0)
        return LayerCache(
            key_BGSK=jax.lax.dynamic_update_slice(self.key_BGSK, k_BLGK.swapaxes(1, 2), start),
            value_BGSK=jax.lax.dynamic_update_slice(self.value_BGSK, v_BLGK.swapaxes(1, 2), start),
        )


@flax.struct.dataclass
class KVCache:
    """The cache of a batch. Prompts of different lengths are padded on the left.

    Row `b` holds its tokens in slots `first_slot_B[b]` … `length - 1`. So every row writes its
    next token into the same slot, and token `i` of a row has position `i` whatever the padding.
    Lowering `length` drops the tokens after it.
    """

    layers: tuple[LayerCache, ...]
    length: Int[Array, '']  # filled slots
    first_slot_B: Int[Array, 'B']

    def grow(self, slots: int) -> 'KVCache':
        """Returns the cache with room for `slots` tokens; empty slots are added at the end."""

        def pad(x_BGSK: jax.Array) -> jax.Array:
            return jnp.pad(x_BGSK, ((0, 0), (0, 0), (0, slots - x_BGSK.shape[2]), (0, 0)))

        return self.replace(layers=jax.tree.map(pad, self.layers))


def make_cache(config: ModelConfig, *, first_slot_B: Int[Array, 'B'], slots: int) -> KVCache:
    """Returns an empty cache in the compute dtype; row b has `first_slot_B[b]` padding slots."""
    shape = (first_slot_B.shape[0], config.num_kv_heads, slots, config.head_dim)
    zeros = jnp.zeros(shape, jnp.dtype(config.precision.compute))
    layers = tuple(LayerCache(zeros, zeros) for _ in range(config.num_layers))
    return KVCache(layers, jnp.zeros((), jnp.int32), first_slot_B)
