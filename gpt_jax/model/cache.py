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
    """The cache of a batch, whose rows have lengths of their own.

    Row `b` holds its tokens in slots 0 … `length_B[b] - 1`, so token `i` has position `i`. What is
    in later slots is never read. Lowering a length drops the tokens after it.
    """

    layers: tuple[LayerCache, ...]
    length_B: Int[Array, 'B']  # filled slots

    def resize(self, slots: int) -> 'KVCache':
        """Returns the cache with room for `slots` tokens; longer rows lose their last ones."""

        def fit(x_BGSK: jax.Array) -> jax.Array:
            missing = max(0, slots - x_BGSK.shape[2])
            return jnp.pad(x_BGSK[:, :, :slots], ((0, 0), (0, 0), (0, missing), (0, 0)))

        return KVCache(jax.tree.map(fit, self.layers), jnp.minimum(self.length_B, slots))


def make_cache(config: ModelConfig, *, rows: int, slots: int) -> KVCache:
    """Returns an empty cache in the compute dtype."""
    dtype = jnp.dtype(config.precision.compute)
    shapes = config.attention.cache_shapes(config)
    zeros = {name: jnp.zeros((rows, G, slots, K), dtype) for name, (G, K) in shapes.items()}
    layers = tuple(LayerCache(dict(zeros)) for _ in range(config.num_layers))
    return KVCache(layers, jnp.zeros(rows, jnp.int32))


def cache_bytes_per_token(config: ModelConfig) -> int:
    """Returns the bytes that all layers keep for one token, in the compute dtype."""
    sizes = [heads * width for heads, width in config.attention.cache_shapes(config).values()]
    return config.num_layers * sum(sizes) * jnp.dtype(config.precision.compute).itemsize


def grouped_query_cache_bytes_per_token(config: ModelConfig) -> int:
    """Returns the same for grouped-query attention with the heads of `config`."""
    return cache_bytes_per_token(dataclasses.replace(config, attention=GroupedQuery()))
