"""The cache of one layer."""

import flax.struct
import jax
import jax.numpy as jnp
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

    def write(self, slot_B: Int[Array, 'B'], **new: Float[Array, 'B L _ _']) -> 'LayerCache':
        """Returns the cache with `L` new tokens of each array, in row b from `slot_B[b]` on.

        A row without room for all of them does not change.
        """
        return LayerCache(
            {name: _write(self.arrays[name], slot_B, x.swapaxes(1, 2)) for name, x in new.items()}
        )


def _write(
    old_BGSK: Float[Array, 'B G S K'], slot_B: Int[Array, 'B'], new_BGLK: Float[Array, 'B G L K']
) -> Float[Array, 'B G S K']:
    """Writes the window of each row at its slot, in place if XLA may reuse the array.

    Each head has a window of its own: for a single one, XLA's CPU compiler would copy the cache.
    """
    return jax.lax.scatter(
        old_BGSK,
        jnp.broadcast_to(slot_B[:, None, None], (*new_BGLK.shape[:2], 1)),
        new_BGLK,
        jax.lax.ScatterDimensionNumbers(
            update_window_dims=(2, 3),
            inserted_window_dims=(),
            scatter_dims_to_operand_dims=(2,),
            operand_batching_dims=(0, 1),
            scatter_indices_batching_dims=(0, 1),
        ),
        indices_are_sorted=True,
        unique_indices=True,
        mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
    )
