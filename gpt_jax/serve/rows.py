"""The rows of the batch, as the host knows them, and what requests need of them."""

import dataclasses
from typing import Any

import numpy as np

from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.decode import Decoder
from gpt_jax.inference.programs import TokenScores
from gpt_jax.inference.sampling import SamplingRule, make_rule
from gpt_jax.serve.request import Request, Score

GREEDY = SampleConfig(temperature=0.0)  # of rows without a request


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


def reusable(tokens: list[int], request: Request) -> int:
    """Returns how many tokens of the prompt need no pass; the last one does, for its logits."""
    if request.options.scores_prompt or not request.options.use_cache:
        return 0
    most = min(len(tokens), len(request.prompt) - 1)
    return next((i for i in range(most) if tokens[i] != request.prompt[i]), most)


def rule_of(rows: list[Row], decoder: Decoder, *, is_full: bool = False) -> SamplingRule:
    """Returns the rules of the rows, in one of two variants that are compiled.

    The full one has `truncates`; it is taken if a row needs more than temperature and min-p.
    """
    configs = [row.request.sampling if row.request else GREEDY for row in rows]
    rule = make_rule(configs, vocab_size=decoder.vocab_size)
    is_full |= rule.truncates or rule.penalises or any(map(wants_more, rows))
    bias_BV = biases_of(rows, vocab_size=decoder.config.vocab_size) if is_full else None
    return rule.replace(draws=True, truncates=is_full, penalises=is_full, bias_BV=bias_BV)


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
    slots = slice(slots.start, slots.stop)  # of a copy, a range would be an index for each token
    token_S = scores.token_BS[row, slots].tolist()
    if not best:
        return [Score(logprob, []) for logprob in token_S]
    ids_SK = scores.best_ids_BSK[row, slots, :best].tolist()
    best_SK = scores.best_BSK[row, slots, :best].tolist()
    return [
        Score(logprob, list(zip(ids, logprobs, strict=True)))
        for logprob, ids, logprobs in zip(token_S, ids_SK, best_SK, strict=True)
    ]
