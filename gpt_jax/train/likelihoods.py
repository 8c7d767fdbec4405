"""The scoring steps, pure functions of arrays: log-likelihoods of rows and of their tokens."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from gpt_jax.kernels.loss_softmax import LossOptions, softmax_xla
from gpt_jax.kernels.shard_map import mesh_axes, shard_map
from gpt_jax.model.gpt import output_table
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.train.loss import chunk_count
from gpt_jax.train.step import Batch, StepParts

_ROWS = PartitionSpec('batch', 'length')


@flax.struct.dataclass
class RowScores:
    """Sums over the tokens of each row, weighted by the loss mask."""

    log_likelihood: Float[Array, 'B']  # nats, 0 or less
    correct: Float[Array, 'B']  # number of target tokens that are the argmax


def make_score_step(parts: StepParts) -> Callable[[Any, Batch], RowScores]:
    """Returns a function that scores rows of `tokens` [B, L+1], weighted by `loss_mask` [B, L]."""
    config = parts.model.config
    options = LossOptions(
        vocab_size=config.vocab_size,
        soft_cap=config.output_soft_cap,
        chunk_bytes=parts.loss_chunk_bytes,
    )

    def score_step(params: Any, batch: Batch) -> RowScores:
        executed = to_executed(params, config, scan=parts.model.scan)
        tokens = batch['tokens']
        hidden_BLD, _ = parts.model.apply({'params': executed}, tokens[:, :-1], method='hidden')
        scores = score_rows(
            hidden_BLD, output_table(executed, config), tokens[:, 1:], batch['loss_mask'], options
        )
        return jax.tree.map(parts.gather, scores)

    return score_step


def make_token_step(parts: StepParts) -> Callable[[Any, Batch], Float[Array, 'B L']]:
    """Returns a function that computes the loss of each target token of a batch, in nats.

    The model reads the batch as the training step does, without dropout. The loss is not weighted.
    """
    config = parts.model.config
    options = LossOptions(
        vocab_size=config.vocab_size,
        soft_cap=config.output_soft_cap,
        chunk_bytes=parts.loss_chunk_bytes,
    )

    def token_step(params: Any, batch: Batch) -> Float[Array, 'B L']:
        executed = to_executed(params, config, scan=parts.model.scan)
        tokens, segments = batch['tokens'], batch.get('segment_ids')
        hidden_BLD, _ = parts.model.apply(
            {'params': executed},
            tokens[:, :-1],
            segment_ids_BL=None if segments is None else segments[:, :-1],
            method='hidden',
        )
        table_VD = output_table(executed, config).astype(hidden_BLD.dtype)
        vocab_axes = mesh_axes('vocab', table_VD.shape[0])
        losses_BL = shard_map(
            lambda *arrays: _score_tokens(*arrays, options, vocab_axes)[0],
            [hidden_BLD, table_VD, tokens[:, 1:]],
            [PartitionSpec('batch', 'length', None), PartitionSpec('vocab', None), _ROWS],
            _ROWS,
        )
        return parts.gather(losses_BL)

    return token_step


def score_rows(
    hidden_BLD: Float[Array, 'B L D'],
    table_VD: Float[Array, 'V D'],
    targets_BL: jax.Array,
    weights_BL: Float[Array, 'B L'],
    options: LossOptions,
) -> RowScores:
    """Computes the scores of rows; each device computes its tokens and its shard of the table."""
    vocab_axes = mesh_axes('vocab', table_VD.shape[0])
    length_axes = mesh_axes('length', hidden_BLD.shape[1])

    def score(hidden_BLD, table_VD, targets_BL, weights_BL):
        nll_BL, correct_BL = _score_tokens(hidden_BLD, table_VD, targets_BL, options, vocab_axes)
        sums = RowScores(
            log_likelihood=-jnp.sum(nll_BL * weights_BL, axis=1),
            correct=jnp.sum(correct_BL * weights_BL, axis=1),
        )
        return jax.lax.psum(sums, length_axes) if length_axes else sums

    return shard_map(
        score,
        [hidden_BLD, table_VD.astype(hidden_BLD.dtype), targets_BL, weights_BL],
        [PartitionSpec('batch', 'length', None), PartitionSpec('vocab', None), _ROWS, _ROWS],
        RowScores(PartitionSpec('batch'), PartitionSpec('batch')),
    )


def _score_tokens(
    hidden_BLD: Float[Array, 'B L D'],
    table_VD: Float[Array, 'V D'],
    targets_BL: jax.Array,
    options: LossOptions,
    vocab_axes: tuple[str, ...],
) -> tuple[Float[Array, 'B L'], Float[Array, 'B L']]:
    """Returns each target's loss, and 1 where it is the argmax, from one chunk of logits at a time.

    The table may be this device's shard over `vocab_axes`.
    """
    B, L, D = hidden_BLD.shape
    chunks = chunk_count(B * L, 4 * B * L * table_VD.shape[0], options.chunk_bytes)

    def score_chunk(chunk):
        hidden_MD, targets_M = chunk
        raw_MV = jax.lax.dot_general(
            hidden_MD, table_VD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        losses, _ = softmax_xla(
            options,
            raw_MV,
            targets_M,
            jnp.ones(targets_M.shape, jnp.float32),
            gradients=False,
            vocab_axes=vocab_axes,
        )
        return losses.nll_M, losses.correct_M

    split = (hidden_BLD.reshape(chunks, -1, D), targets_BL.reshape(chunks, -1))
    nll, correct = jax.lax.map(score_chunk, split)
    return nll.reshape(B, L), correct.reshape(B, L)
