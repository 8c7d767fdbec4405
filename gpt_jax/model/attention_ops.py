"""Score kernels: scaled dot-product attention, one function a backend behind one signature.

`attend_xla` is the reference: it can express everything. Another kernel states what it cannot
(`unsupported_by`), and asking for it all the same is an error, never a silent fallback.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gpt_jax.errors import UserError
from gpt_jax.model.config import AttentionKernel, DType, ModelConfig, PositionKind
from gpt_jax.model.linear import dropout

MASKED = -1e30  # a score that softmax turns into an exact 0


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


def attend_xla(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGK: Float[Array, 'B S G K'],
    *,
    mask: AttentionMask,
    window: int = 0,
    soft_cap: float = 0.0,
    slopes_H: Float[Array, 'H'] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ''] | None = None,
) -> Float[Array, 'B L H K']:
    """Softmax attention of `H` query heads over `G` key/value heads, in plain XLA operations.

    Products run in the input's dtype and accumulate in float32, as does the softmax. The score
    matrix `[B, H, L, S]` is materialised.
    """
    B, L, H, K = q_BLHK.shape
    S, G = k_BSGK.shape[1:3]
    q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
    scores_BGRLS = jnp.einsum(
        'BLGRK,BSGK->BGRLS', q_BLGRK, k_BSGK, preferred_element_type=jnp.float32
    )
    scores_BGRLS *= K**-0.5
    if soft_cap:
        scores_BGRLS = soft_cap * jnp.tanh(scores_BGRLS / soft_cap)
    if slopes_H is not None:
        distance_LS = mask.first_query_slot + jnp.arange(L)[:, None] - jnp.arange(S)[None, :]
        penalty_GRLS = slopes_H.reshape(G, H // G, 1, 1) * distance_LS[None, None]
        scores_BGRLS -= penalty_GRLS[None]
    visible = mask.visible(length=L, keys=S, window=window)
    scores_BGRLS = jnp.where(visible[:, None, None], scores_BGRLS, MASKED)
    weights_BGRLS = jax.nn.softmax(scores_BGRLS, axis=-1).astype(v_BSGK.dtype)
    weights_BGRLS = dropout(weights_BGRLS, dropout_rate, dropout_key)
    out_BLGRK = jnp.einsum('BGRLS,BSGK->BLGRK', weights_BGRLS, v_BSGK)
    return out_BLGRK.reshape(B, L, H, K)


def attend_cudnn(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGK: Float[Array, 'B S G K'],
    *,
    mask: AttentionMask,
    window: int = 0,
    soft_cap: float = 0.0,
    slopes_H: Float[Array, 'H'] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ''] | None = None,
) -> Float[Array, 'B L H K']:
    """NVIDIA's fused attention: the scores never reach memory. Half precision, no cache."""
    if soft_cap or slopes_H is not None or (dropout_rate and dropout_key is not None):
        raise ValueError('cudnn attention has no soft cap, no score slopes and no dropout')
    if mask.segment_ids_BS is not None or mask.first_slot_B is not None:
        raise ValueError('cudnn attention takes no segments and no padding')
    return jax.nn.dot_product_attention(
        q_BLHK,
        k_BSGK,
        v_BSGK,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation='cudnn',
    )


ATTENTION_KERNELS: dict[AttentionKernel, Callable[..., jax.Array]] = {
    AttentionKernel.XLA: attend_xla,
    AttentionKernel.CUDNN: attend_cudnn,
}


def cudnn_obstacle(config: ModelConfig, *, backend: str, segments: bool) -> str:
    """Why cuDNN attention cannot run `config` on `backend`; empty when it can."""
    obstacles = {
        f'the backend is {backend}, not gpu': backend != 'gpu',
        'config.model.compute_dtype is not bfloat16': config.compute_dtype != DType.BFLOAT16,
        'config.model.attention_soft_cap is on': bool(config.attention_soft_cap),
        'config.model.position is alibi': config.position == PositionKind.ALIBI,
        'config.model.attention_dropout is on': bool(config.attention_dropout),
        'config.data.segment_ids is on': segments,
        'config.model.head_dim is over 128 or no multiple of 8': (
            config.head_dim > 128 or config.head_dim % 8 != 0
        ),
    }
    return next((obstacle for obstacle, present in obstacles.items() if present), '')


def resolve_kernel(config: ModelConfig, *, backend: str, segments: bool) -> AttentionKernel:
    """The kernel that `config` gets on `backend` ('cpu', 'gpu', 'tpu').

    Raises:
        UserError: the kernel was asked for by name and cannot run.
    """
    obstacle = cudnn_obstacle(config, backend=backend, segments=segments)
    if config.attention_kernel == AttentionKernel.AUTO:
        return AttentionKernel.XLA if obstacle else AttentionKernel.CUDNN
    if config.attention_kernel == AttentionKernel.CUDNN and obstacle:
        raise UserError(
            f'config.model.attention_kernel=cudnn cannot run: {obstacle}; '
            f'change that or set config.model.attention_kernel=auto'
        )
    return config.attention_kernel
