"""Distributions of the next token, reduced to what a person reads of them."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.inspector.inspector import Inspector

BITS = 1 / np.log(2)  # in one nat


class Predictions(NamedTuple):
    """The `C` most probable tokens after each of `L`, and the loss of the actual next token."""

    ids: Int[Array, 'L C']  # the most probable first
    probabilities: Float[Array, 'L C']
    entropy: Float[Array, 'L']  # in bits
    loss: Float[Array, 'L-1']  # of the token after each position but the last, in nats
    rank: Int[Array, 'L-1']  # of that token; 1 is the most probable


def describe_logits(
    logits_LV: Float[Array, 'L V'], tokens_L: Int[Array, 'L'], count: int
) -> Predictions:
    """Reduces logits to predictions.

    Args:
      logits_LV: of the token after each position.
      tokens_L: the text.
      count: tokens to list per position, at most the vocabulary.
    """
    log_LV = jax.nn.log_softmax(logits_LV.astype(jnp.float32))
    best, ids = jax.lax.top_k(log_LV, min(count, log_LV.shape[-1]))
    loss = next_losses(logits_LV, tokens_L)
    return Predictions(
        ids=ids,
        probabilities=jnp.exp(best),
        entropy=-(jnp.exp(log_LV) * log_LV).sum(-1) * BITS,
        loss=loss,
        rank=1 + (log_LV[:-1] > -loss[:, None]).sum(-1),
    )


def next_losses(logits_LV: Float[Array, 'L V'], tokens_L: Int[Array, 'L']) -> Float[Array, 'L-1']:
    """Returns the loss of each token after the first, in nats."""
    log_LV = jax.nn.log_softmax(logits_LV.astype(jnp.float32))
    return -jnp.take_along_axis(log_LV[:-1], tokens_L[1:, None], -1)[:, 0]


def texts_by_id(inspector: Inspector, ids: Iterable[int]) -> dict[str, str]:
    """Returns the text of each id, which is a string as JSON's keys are."""
    unique = sorted({int(each) for each in ids})
    return dict(zip(map(str, unique), inspector.token_texts(unique), strict=True))
