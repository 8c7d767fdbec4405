"""The cache for decoding: what attention keeps of earlier tokens, such as keys and values."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gpt_jax.model.attention import GroupedQuery
from gpt_jax.model.attention.layer_cache import LayerCache
from gpt_jax.model.config import ModelConfig


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
    B, dtype = first_slot_B.shape[0], jnp.dtype(config.precision.compute)
    shapes = config.attention.cache_shapes(config)
    zeros = {name: jnp.zeros((B, G, slots, K), dtype) for name, (G, K) in shapes.items()}
    layers = tuple(LayerCache(dict(zeros)) for _ in range(config.num_layers))
    return KVCache(layers, jnp.zeros((), jnp.int32), first_slot_B)


def cache_bytes_per_token(config: ModelConfig) -> int:
    """Returns the bytes that all layers keep for one token, in the compute dtype."""
    sizes = [heads * width for heads, width in config.attention.cache_shapes(config).values()]
    return config.num_layers * sum(sizes) * jnp.dtype(config.precision.compute).itemsize


def grouped_query_cache_bytes_per_token(config: ModelConfig) -> int:
    """Returns the same for grouped-query attention with the heads of `config`."""
    return cache_bytes_per_token(dataclasses.replace(config, attention=GroupedQuery()))
