"""The key/value cache: what attention keeps of the tokens that it has seen."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.model.config import ModelConfig


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one layer; slots beyond the cache's length hold zeros."""

    key_BSGK: Float[Array, 'B S G K']
    value_BSGK: Float[Array, 'B S G K']

    def write(self, k_BLGK: jax.Array, v_BLGK: jax.Array, slot: jax.Array) -> 'LayerCache':
        """The cache with `L` new keys and values from `slot` on."""
        start = (0, slot, 0, 0)
        return LayerCache(
            key_BSGK=jax.lax.dynamic_update_slice(self.key_BSGK, k_BLGK, start),
            value_BSGK=jax.lax.dynamic_update_slice(self.value_BSGK, v_BLGK, start),
        )


@flax.struct.dataclass
class KVCache:
    """The cache of a batch. Prompts of different lengths are padded on the left.

    Row `b` holds its tokens in slots `first_slot_B[b]` … `length - 1`, so that every row writes
    its next token into the same slot and token `i` of a row has position `i` whatever the padding.
    """

    layers: tuple[LayerCache, ...]
    length: Int[Array, '']  # filled slots
    first_slot_B: Int[Array, 'B']


def make_cache(config: ModelConfig, *, first_slot_B: Int[Array, 'B'], slots: int) -> KVCache:
    """An empty cache of `slots` slots in the compute dtype; `first_slot_B` is the padding."""
    shape = (first_slot_B.shape[0], slots, config.num_kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, jnp.dtype(config.compute_dtype))
    layers = tuple(LayerCache(zeros, zeros) for _ in range(config.num_layers))
    return KVCache(layers, jnp.zeros((), jnp.int32), first_slot_B)
