"""The cache of one layer."""

import flax.struct
import jax
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class LayerCache:
    """Arrays of one layer by name, `[B, G, S, K]`; slots beyond the cache's length are masked.

    Each attention says which arrays it keeps (`BaseAttention.cache_shapes`). Heads come before
    slots, because the batched products of attention read them in this order. Otherwise XLA
    transposes the whole cache for every token.
    """

    arrays: dict[str, Float[Array, 'B _ S _']]

    def read(self, name: str) -> Float[Array, 'B S _ _']:
        """Returns an array as attention takes it."""
        return self.arrays[name].swapaxes(1, 2)

    def write(self, slot: Int[Array, ''], **new: Float[Array, 'B L _ _']) -> 'LayerCache':
        """Returns the cache with `L` new tokens of each array from `slot` on."""
        start = (0, 0, slot, 0)
        return LayerCache(
            {
                name: jax.lax.dynamic_update_slice(self.arrays[name], x.swapaxes(1, 2), start)
                for name, x in new.items()
            }
        )
