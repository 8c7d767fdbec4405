"""Evaluation over token windows, given the step that sums a batch's losses."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax


class Evaluation(NamedTuple):
    """The model's loss on a text."""

    loss: float  # nats a token
    perplexity: float
    bits_per_byte: float  # total bits over the text's UTF-8 bytes; nan when bytes are unknown
    accuracy: float
    tokens: int

    def row(self) -> dict[str, float]:
        """The numbers under the names that `eval.json` and `metrics.jsonl` use."""
        return self._asdict()


def evaluate(
    eval_step: Callable[[Any, dict], Any],
    params: Any,
    batches: Iterable[dict[str, Any]],
    *,
    bytes_per_token: float,
) -> Evaluation:
    """Means over every unmasked target token of `batches`.

    `eval_step(params, batch)` returns sums with `cross_entropy`, `correct` and `weight`. The sums
    are added in float64 on the host, in order, so the result is the same on every run.
    """
    cross_entropy = correct = weight = 0.0
    pending = None
    for batch in batches:
        sums = eval_step(params, batch)
        if pending is not None:  # read the previous batch while this one runs
            cross_entropy, correct, weight = _add(pending, cross_entropy, correct, weight)
        pending = sums
    if pending is not None:
        cross_entropy, correct, weight = _add(pending, cross_entropy, correct, weight)
    loss = cross_entropy / max(weight, 1.0)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=loss / math.log(2) / bytes_per_token if bytes_per_token else math.nan,
        accuracy=correct / max(weight, 1.0),
        tokens=int(weight),
    )


def _add(sums: Any, cross_entropy: float, correct: float, weight: float):
    """The totals with one batch's sums added."""
    sums = jax.device_get(sums)
    return (
        cross_entropy + float(sums.cross_entropy),
        correct + float(sums.correct),
        weight + float(sums.weight),
    )
