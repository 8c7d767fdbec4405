"""The loss over windows of tokens, from a step that returns the sums of a batch."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """The model's loss on a text."""

    loss: float  # nats per token
    perplexity: float
    bits_per_byte: float | None  # None if the number of UTF-8 bytes is unknown
    accuracy: float
    tokens: int

    def describe(self) -> str:
        """Formats the loss, the perplexity and, if known, the bits per byte."""
        bits = f', {self.bits_per_byte:.4f} bits per byte' if self.bits_per_byte is not None else ''
        return f'{self.loss:.4f} (perplexity {self.perplexity:.2f}{bits})'

    def row(self) -> dict[str, float]:
        """Returns the numbers by their names in `eval.json` and `metrics.jsonl`, without NaN."""
        numbers = {name: value for name, value in self._asdict().items() if value is not None}
        return {name: value for name, value in numbers.items() if not math.isnan(value)}


def evaluate(
    eval_step: Callable[[Any, dict], Any],
    params: Any,
    batches: Iterable[dict[str, Any]],
    *,
    bytes_per_token: float | None,
    advance: Callable[[float], None] = lambda tokens: None,
) -> Evaluation:
    """Returns means over every unmasked target token of `batches`; NaN if there is none.

    `eval_step(params, batch)` returns sums with `cross_entropy`, `correct` and `weight`. The sums
    are added in float64 on the host, in order, so the result is reproducible. `advance` is called
    with the number of tokens so far.
    """
    totals = np.zeros(3)
    for sums in one_behind(eval_step(params, batch) for batch in batches):
        totals += [float(sums.cross_entropy), float(sums.correct), float(sums.weight)]
        advance(totals[2])
    cross_entropy, correct, weight = totals.tolist()
    loss = cross_entropy / weight if weight else math.nan
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=loss / math.log(2) / bytes_per_token if bytes_per_token else None,
        accuracy=correct / weight if weight else math.nan,
        tokens=int(weight),
    )


def one_behind(results: Iterable[Any]) -> Iterator[Any]:
    """Yields results one late, so that the device computes the next while one is read."""
    previous = None
    for result in results:
        if previous is not None:
            yield previous
        previous = result
    if previous is not None:
        yield previous
