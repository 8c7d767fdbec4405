"""Masks and options of attention scores."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

MASKED = -1e30  # a score that softmax turns into an exact 0


@flax.struct.dataclass
class AttentionMask:
    """The keys that a query sees: those at or before its own slot, except as the fields exclude.

    A slot is an index into the keys. Without a cache queries are in slots 0 … L-1.
    """

    first_query_slot_B: Int[Array, '#B'] | None = None  # of each row in its cache; None: no cache
    segment_ids_BS: Int[Array, 'B S'] | None = None  # attention stays within equal ids

    def visible(self, *, length: int, keys: int, window: int) -> Bool[Array, '... L S']:
        """Returns `[1 or B, L, S]`: True where attention is allowed. `window` 0 is unlimited."""
        distance = self.distance(length=length, keys=keys)
        visible = distance >= 0
        if window:
            visible &= distance < window
        if self.segment_ids_BS is not None:
            segments = self.segment_ids_BS
            visible = visible & (segments[:, :, None] == segments[:, None, :])
        return visible

    def distance(self, *, length: int, keys: int) -> Int[Array, '... L S']:
        """Returns `[1 or B, L, S]`: the slots from each key to the query."""
        distance_1LS = (jnp.arange(length)[:, None] - jnp.arange(keys)[None, :])[None]
        if self.first_query_slot_B is None:
            return distance_1LS
        return self.first_query_slot_B[:, None, None] + distance_1LS


@flax.struct.dataclass
class ScoreOptions:
    """The last argument of every attention kernel, after queries, keys and values."""

    mask: AttentionMask = AttentionMask()
    slopes_H: Float[Array, 'H'] | None = None  # ALiBi: score lost per token of distance
    dropout_key: Key[Array, ''] | None = None  # None: no dropout
    window: int = flax.struct.field(pytree_node=False, default=0)  # tokens back; 0: no limit
    soft_cap: float = flax.struct.field(pytree_node=False, default=0.0)  # 0: off
    dropout_rate: float = flax.struct.field(pytree_node=False, default=0.0)

    @property
    def drops(self) -> bool:
        """True if dropout is on."""
        return self.dropout_key is not None and self.dropout_rate > 0

    @property
    def is_causal_only(self) -> bool:
        """True if the mask has no segments, and keys are those of this call alone."""
        return self.mask.segment_ids_BS is None and self.mask.first_query_slot_B is None


def hide_masked(
    scores_BGRLS: Float[Array, 'B G R L S'],
    *,
    mask: AttentionMask,
    window: int,
    slopes_H: Float[Array, 'H'] | None,
) -> Float[Array, 'B G R L S']:
    """Subtracts ALiBi's penalty from the scores and replaces masked ones by `MASKED`."""
    _, G, R, L, S = scores_BGRLS.shape
    if slopes_H is not None:
        distance = mask.distance(length=L, keys=S)[:, None, None]
        scores_BGRLS -= slopes_H.reshape(1, G, R, 1, 1) * distance
    visible = mask.visible(length=L, keys=S, window=window)
    return jnp.where(visible[:, None, None], scores_BGRLS, MASKED)


def soften(scores: jax.Array, cap: float) -> jax.Array:
    """Returns `cap * tanh(scores / cap)`; Gemma Team 2024, https://arxiv.org/abs/2408.00118."""
    return cap * jnp.tanh(scores / cap) if cap else scores
