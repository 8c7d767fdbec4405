"""The losses of a chunk's logits and their gradient: the reference, in XLA operations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class LossOptions(NamedTuple):
    """The static options of the loss."""

    vocab_size: int  # table rows beyond it are padding
    soft_cap: float = 0.0
    z_loss: float = 0.0
    chunk_bytes: int = 2**27
    kernel: str = 'xla'  # a key of LOSS_KERNELS in `kernels.loss`


class TokenLosses(NamedTuple):
    """One number per token, not weighted."""

    nll_M: Float[Array, 'M']  # -log p(target)
    log_z_M: Float[Array, 'M']  # log of the sum over the vocabulary of exp(logit)
    correct_M: Float[Array, 'M']  # 1 where no logit is larger than the target's, else 0


def softmax_xla(
    options: LossOptions,
    raw_MV: Float[Array, 'M V'],
    targets_M: Int[Array, 'M'],
    weights_M: Float[Array, 'M'],
    *,
    gradients: bool = True,
    vocab_axes: tuple[str, ...] = (),
) -> tuple[TokenLosses, Float[Array, 'M V'] | None]:
    """Returns losses of `M` tokens, and d(weighted sum of cross entropy and z-loss) / d(logits).

    `raw_MV` is the product with the output table, before the soft cap. `vocab_axes` are the mesh
    axes that the table's rows are sharded over; `raw_MV` is then that of this device's shard.
    """
    V = raw_MV.shape[1]
    first = jax.lax.axis_index(vocab_axes) * V if vocab_axes else 0
    targets_M1, weights_M1 = targets_M[:, None] - first, weights_M[:, None]
    vocab_1V = jnp.arange(V)[None, :]
    cap = options.soft_cap
    capped_MV = cap * jnp.tanh(raw_MV / cap) if cap else raw_MV
    logits_MV = jnp.where(vocab_1V < options.vocab_size - first, capped_MV, -jnp.inf)
    max_M1 = jax.lax.pmax(logits_MV.max(-1, keepdims=True), vocab_axes)
    exp_MV = jnp.exp(logits_MV - max_M1)
    sum_M1 = jax.lax.psum(exp_MV.sum(-1, keepdims=True), vocab_axes)
    log_z_M1 = jnp.log(sum_M1) + max_M1
    is_here_M1 = (targets_M1 >= 0) & (targets_M1 < V)
    target_M1 = jnp.take_along_axis(logits_MV, jnp.clip(targets_M1, 0, V - 1), -1)
    target_M1 = jax.lax.psum(jnp.where(is_here_M1, target_M1, 0.0), vocab_axes)
    correct_M1 = (target_M1 >= max_M1).astype(jnp.float32)
    losses = TokenLosses(*(x[:, 0] for x in (log_z_M1 - target_M1, log_z_M1, correct_M1)))
    if not gradients:
        return losses, None
    # d(nll)/d(logits) = softmax - onehot; the z-loss adds 2 z log(Z) softmax.
    softmax_scale_M1 = (1 + 2 * options.z_loss * log_z_M1) / sum_M1 * weights_M1
    dlogits_MV = exp_MV * softmax_scale_M1 - (vocab_1V == targets_M1) * weights_M1
    if cap:
        dlogits_MV *= 1 - (capped_MV / cap) ** 2
    return losses, dlogits_MV
