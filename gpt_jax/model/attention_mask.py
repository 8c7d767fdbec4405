"""Which keys a query may see: what every score kernel takes beside queries, keys and values."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class AttentionMask:
    """Which keys a query may see: those at or before its own slot, and not excluded below.

    A slot is an index into the keys. Without a cache queries stand in slots 0 … L-1.
    """

    first_query_slot: int | Int[Array, ''] = 0  # where this call's queries begin in the cache
    segment_ids_BS: Int[Array, 'B S'] | None = None  # attention stays within equal ids
    first_slot_B: Int[Array, 'B'] | None = None  # keys before it are padding

    def visible(self, *, length: int, keys: int, window: int) -> Bool[Array, '... L S']:
        """`[1 or B, L, S]`: True where attention is allowed. `window` 0 is unlimited."""
        query_L1 = (self.first_query_slot + jnp.arange(length))[:, None]
        key_1S = jnp.arange(keys)[None, :]
        visible_LS = key_1S <= query_L1
        if window:
            visible_LS &= key_1S > query_L1 - window
        visible = visible_LS[None]
        if self.segment_ids_BS is not None:
            segments = self.segment_ids_BS
            visible = visible & (segments[:, :, None] == segments[:, None, :])
        if self.first_slot_B is not None:
            visible = visible & (key_1S[None] >= self.first_slot_B[:, None, None])
        return visible
