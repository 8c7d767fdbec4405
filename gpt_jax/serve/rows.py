"""The rows of the batch, as the host knows them, and what requests need of them."""

import dataclasses
from typing import Any

import numpy as np

from gpt_jax.inference.decode import LEAST_CAPACITY
from gpt_jax.inference.programs import TokenScores
from gpt_jax.serve.request import Request, Score


@dataclasses.dataclass(eq=False)
class Row:
    """A row of the batch, as the host knows it."""

    number: int
    tokens: list[int] = dataclasses.field(default_factory=list)  # in its slots of the cache
    request: Request | None = None
    waiting: list[int] = dataclasses.field(default_factory=list)  # not yet in the cache
    drawn: int = 0
    hidden: Any = 0.0  # sum of the prompt's last hidden states so far
    refills: bool = False  # the text has begun, and its cache is filled again
    since: float = 0.0  # time of `time.monotonic` from which its next tokens are timed
    freed: int = 0  # turn in which its last text ended


def rungs_to(most: int) -> list[int]:
    """Returns the sizes of the cache: powers of two from the least capacity on, and `most`."""
    rungs = [LEAST_CAPACITY]
    while rungs[-1] * 2 < most:
        rungs.append(rungs[-1] * 2)
    return [*rungs, most] if rungs[-1] < most else [most]


def reusable(tokens: list[int], request: Request) -> int:
    """Returns how many tokens of the prompt need no pass; the last one does, for its logits."""
    if request.options.scores_prompt or not request.options.use_cache:
        return 0
    most = min(len(tokens), len(request.prompt) - 1)
    return next((i for i in range(most) if tokens[i] != request.prompt[i]), most)


def wants_more(row: Row) -> bool:
    """Returns whether the row's request has biases, which JSON makes too, or wants alternatives."""
    request = row.request
    return request is not None and bool(
        request.options.bias or request.options.best or request.json
    )


def biases_of(rows: list[Row], *, vocab_size: int) -> np.ndarray:
    """Returns what is added to the logits `[B, V]` of the rows; -inf forbids a token."""
    bias_BV = np.zeros((len(rows), vocab_size), np.float32)
    for row in rows:
        if row.request and row.request.options.bias:
            ids, values = zip(*row.request.options.bias.items(), strict=True)
            bias_BV[row.number, list(ids)] = values
        if row.request and row.request.json:
            bias_V = row.request.json.bias_V
            bias_BV[row.number, : len(bias_V)] += bias_V
    return bias_BV


def scores_of(scores: TokenScores, row: int, slots: range, *, best: int) -> list[Score]:
    """Returns the scores of the tokens in some slots of a row, with those of the `best` ones."""
    token_S = scores.token_BS[row, slots].tolist()
    if not best:
        return [Score(logprob, []) for logprob in token_S]
    ids_SK = scores.best_ids_BSK[row, slots, :best].tolist()
    best_SK = scores.best_BSK[row, slots, :best].tolist()
    return [
        Score(logprob, list(zip(ids, logprobs, strict=True)))
        for logprob, ids, logprobs in zip(token_S, ids_SK, best_SK, strict=True)
    ]
