"""Cross entropy that never materialises the full logits.

The forward pass computes the logits of one chunk of tokens at a time, then its loss and both
gradients, and discards the logits. The backward pass only scales the gradients. Without
differentiation the same function computes the loss alone.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gpt_jax.kernels.loss import LOSS_KERNELS
from gpt_jax.kernels.loss_softmax import LossOptions, softmax_xla
from gpt_jax.kernels.shard_map import mesh_axes, shard_map


@flax.struct.dataclass
class LossSums:
    """Sums over the tokens of a batch, all 0 if it is empty; divide by `weight` for means."""

    cross_entropy: Float[Array, '']  # nats
    correct: Float[Array, '']  # tokens whose most likely prediction is the target
    weight: Float[Array, '']  # tokens that count


def cross_entropy(
    hidden_BLD: Float[Array, 'B L D'],
    table_VD: Float[Array, 'V D'],
    targets_BL: Int[Array, 'B L'],
    weights_BL: Float[Array, 'B L'],
    options: LossOptions,
) -> tuple[Float[Array, ''], LossSums]:
    """Returns the summed loss (cross entropy and z-loss, in nats) and the sums to report.

    Only the first result is differentiable, with respect to `hidden_BLD` and `table_VD`. The
    z-loss is `z_loss * log(Z)²` per token (de Brébisson and Vincent 2016, PaLM 2022).
    """
    return _cross_entropy(options, hidden_BLD, table_VD, targets_BL, weights_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options, hidden_BLD, table_VD, targets_BL, weights_BL):
    (loss, sums), _ = _scan_chunks(
        options, hidden_BLD, table_VD, targets_BL, weights_BL, gradients=False
    )
    return loss, sums


def _forward(options, hidden_BLD, table_VD, targets_BL, weights_BL):
    return _scan_chunks(options, hidden_BLD, table_VD, targets_BL, weights_BL, gradients=True)


def _backward(options, gradients, cotangents):
    scale, _ = cotangents
    dhidden_BLD, dtable_VD = gradients
    return (
        dhidden_BLD * scale.astype(dhidden_BLD.dtype),
        dtable_VD * scale.astype(dtable_VD.dtype),
        None,
        None,
    )


_cross_entropy.defvjp(_forward, _backward)


def _scan_chunks(options, hidden_BLD, table_VD, targets_BL, weights_BL, *, gradients: bool):
    """Returns loss, sums and (dhidden, dtable); each device computes its tokens and vocabulary.

    The gradient of the table is reduce-scattered (where its columns are sharded like the tokens)
    or all-reduced once, after the last chunk.
    """
    (B, L, D), V = hidden_BLD.shape, table_VD.shape[0]
    tokens = mesh_axes('batch', B) + mesh_axes('length', L)
    embed = mesh_axes('embed', D)
    axes = _Axes(tokens=tokens, vocab=mesh_axes('vocab', V), embed=embed)
    hidden, table, rows = (
        PartitionSpec('batch', 'length', None),
        PartitionSpec('vocab', None),
        PartitionSpec('batch', 'length'),
    )
    sums = LossSums(*[PartitionSpec()] * 3)
    stored = PartitionSpec('vocab', embed if set(embed) <= set(tokens) else None)
    results, (dhidden_BLD, dtable_VD) = shard_map(
        functools.partial(_scan_on_one_device, options, axes, gradients=gradients),
        [hidden_BLD, table_VD.astype(hidden_BLD.dtype), targets_BL, weights_BL],
        [hidden, table, rows, rows],
        ((PartitionSpec(), sums), (hidden, stored) if gradients else (None, None)),
    )
    return results, (dhidden_BLD, dtable_VD.astype(table_VD.dtype) if gradients else None)


class _Axes(NamedTuple):
    """The mesh axes that tokens, vocabulary and the stored table's columns are sharded over."""

    tokens: tuple[str, ...]
    vocab: tuple[str, ...]
    embed: tuple[str, ...]  # columns of the stored table


def _scan_on_one_device(
    options, axes: _Axes, hidden_BLD, table_VD, targets_BL, weights_BL, *, gradients: bool
):
    """Computes one device's tokens, chunk by chunk along the sequence."""
    B, L, _ = hidden_BLD.shape
    chunks = chunk_count(L, 4 * B * L * table_VD.shape[0], options.chunk_bytes)

    def add_chunk(carry, chunk):
        loss, sums, dtable = carry
        chunk_loss, chunk_sums, dhidden, chunk_dtable = _chunk(
            options, axes.vocab, table_VD, *chunk, gradients=gradients
        )
        if gradients:
            dtable = dtable + chunk_dtable
        return (loss + chunk_loss, jax.tree.map(jnp.add, sums, chunk_sums), dtable), dhidden

    zero = jnp.zeros((), jnp.float32)
    dtable = jnp.zeros(table_VD.shape, jnp.float32) if gradients else zero
    carry = (zero, LossSums(zero, zero, zero), dtable)
    arrays = (hidden_BLD, targets_BL, weights_BL)
    if chunks == 1:
        (loss, sums, dtable), dhidden_BLD = add_chunk(carry, arrays)
    else:
        split = [x.reshape(B, chunks, L // chunks, *x.shape[2:]).swapaxes(0, 1) for x in arrays]
        (loss, sums, dtable), dhidden = jax.lax.scan(add_chunk, carry, split)
        dhidden_BLD = dhidden.swapaxes(0, 1).reshape(hidden_BLD.shape) if gradients else None
    loss, sums = jax.lax.psum((loss, sums), axes.tokens)
    if not gradients:
        return (loss, sums), (None, None)
    dhidden_BLD = jax.lax.psum(dhidden_BLD, axes.vocab)
    if axes.embed and set(axes.embed) <= set(axes.tokens):
        dtable = jax.lax.psum_scatter(dtable, axes.embed, scatter_dimension=1, tiled=True)
        dtable = jax.lax.psum(dtable, tuple(a for a in axes.tokens if a not in axes.embed))
    else:
        dtable = jax.lax.psum(dtable, axes.tokens)
    return (loss, sums), (dhidden_BLD, dtable)


def chunk_count(length: int, logits_bytes: int, chunk_bytes: int) -> int:
    """Returns the least divisor of `length` whose chunks have at most `chunk_bytes` of logits."""
    wanted = min(length, math.ceil(logits_bytes / chunk_bytes))
    return next(count for count in range(wanted, length + 1) if length % count == 0)


def _chunk(
    options, vocab_axes, table_VD, hidden_BLD, targets_BL, weights_BL, *, gradients: bool
) -> Any:
    """Returns loss, sums and gradients (or Nones) of one chunk of tokens."""
    hidden_MD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])
    targets_M, weights_M = targets_BL.reshape(-1), weights_BL.reshape(-1)
    kernel = LOSS_KERNELS[options.kernel]
    float32 = kernel.float32_logits or not gradients
    raw_MV = jax.lax.dot_general(
        hidden_MD,
        table_VD,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32 if float32 else hidden_MD.dtype,
    )
    if gradients:
        losses, dlogits_MV = kernel.softmax(
            options, raw_MV, targets_M, weights_M, vocab_axes=vocab_axes
        )
    else:
        losses, _ = softmax_xla(
            options, raw_MV, targets_M, weights_M, gradients=False, vocab_axes=vocab_axes
        )
    sums = LossSums(
        cross_entropy=jnp.sum(losses.nll_M * weights_M),
        correct=jnp.sum(losses.correct_M * weights_M),
        weight=jnp.sum(weights_M),
    )
    loss = sums.cross_entropy + options.z_loss * jnp.sum(losses.log_z_M**2 * weights_M)
    if not gradients:
        return loss, sums, None, None
    dlogits_MV = dlogits_MV.astype(hidden_MD.dtype)
    dhidden_MD = jax.lax.dot_general(
        dlogits_MV, table_VD, (((1,), (0,)), ((), ())), preferred_element_type=hidden_MD.dtype
    )
    dtable_VD = jax.lax.dot_general(
        dlogits_MV, hidden_MD, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return loss, sums, dhidden_MD.reshape(hidden_BLD.shape), dtable_VD
