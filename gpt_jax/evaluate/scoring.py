"""Log-likelihoods of continuations given contexts, from which every task is scored.

Texts become windows of tokens. Windows of similar length share a batch, and a batch is sharded
over the mesh. Padding follows the text, where causal attention does not see it, and has weight 0.
So a score depends on its own text alone. The definitions are those of EleutherAI's
lm-evaluation-harness (`lm_eval/api/model.py`, `lm_eval/models/huggingface.py`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.evaluate.windows import one_behind
from gpt_jax.tokenizer import Tokenizer

LEAST_LENGTH = 16  # the smallest padded length; each is compiled once


class Request(NamedTuple):
    """A text to score after a context. The space between them belongs to the continuation."""

    context: str  # '': the continuation begins a text
    continuation: str


class Score(NamedTuple):
    """The score of a continuation, as sums over its windows."""

    windows: tuple[tuple[float, int], ...]  # log-likelihood in nats, number of tokens
    greedy: bool  # every token is the argmax

    @property
    def log_likelihood(self) -> float:
        """The log of p(continuation | context), in nats."""
        return sum(value for value, _ in self.windows)

    @property
    def tokens(self) -> int:
        """The number of tokens of the continuation."""
        return sum(count for _, count in self.windows)


class Encoded(NamedTuple):
    """A request as token ids, at least one in each part."""

    context: np.ndarray
    continuation: np.ndarray

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int]) -> 'Encoded':
        """Returns the request with these ids."""
        return cls(np.array(context, np.int32), np.array(continuation, np.int32))


class Window(NamedTuple):
    """Between 2 and max_seq_len + 1 ids, of which the last `scored` are scored."""

    ids: np.ndarray
    scored: int


def beginning_of_text(tokenizer: Tokenizer) -> int:
    """Returns the id that a text starts after: the beginning-of-text, else the end-of-text id.

    Raises:
        UserError: the tokenizer has neither.
    """
    first = tokenizer.eot_id if tokenizer.bos_id is None else tokenizer.bos_id
    if first is None:
        raise UserError(
            'the tokenizer has no token that begins or ends a text, so nothing stands before the '
            'first one; only tasks with a context can be scored'
        )
    return first


def encode_requests(tokenizer: Tokenizer, requests: Sequence[Request]) -> list[Encoded]:
    """Encodes contexts and continuations.

    Context and continuation are encoded as one text, so that the tokens at the border are those
    seen in training. The continuation is what follows the ids of the context alone. Spaces at the
    end of a context go to the continuation, because they form a token with its first word. If the
    tokenizer has a beginning-of-text id, each context starts with it.

    Raises:
        UserError: a continuation adds no token to its context.
    """
    pairs = []
    for context, continuation in requests:
        kept = context.rstrip()
        pairs.append((kept, kept + context[len(kept) :] + continuation))
    texts = list(dict.fromkeys(text for pair in pairs for text in pair if text))
    ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    ids[''] = np.zeros(0, np.uint32)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    encoded = []
    for context, whole in pairs:
        before = [*bos, *ids[context]] if context else [beginning_of_text(tokenizer)]
        after = ids[whole][len(ids[context]) :]
        if len(after) == 0:
            raise UserError(
                f'nothing to score: {whole[len(context) :]!r} after {context[-40:]!r} has no token '
                f'of its own'
            )
        encoded.append(Encoded.of(before, after))
    return encoded


def cut_windows(encoded: Encoded, *, length: int, stride: int) -> Iterator[Window]:
    """Yields windows that score each token of the continuation once.

    A continuation of at most `length` tokens is one window; a context that does not fit loses its
    beginning. A longer continuation has a first window of `length` tokens after one token of
    context, then windows that advance by `stride`. With a stride of `length` windows overlap
    least; with a smaller one each token has more context.
    """
    ids = np.concatenate(encoded)
    done, step = len(encoded.context), length
    while done < len(ids):
        end = min(done + step, len(ids))
        yield Window(ids[max(0, end - length - 1) : end], end - done)
        done, step = end, stride


def padded_size(number: int, *, least: int) -> int:
    """Returns the first of `least`, 2 * `least`, 4 * `least`, … that is at least `number`."""
    size = least
    while size < number:
        size *= 2
    return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """A scorer of requests with any weights of the model for which its step is compiled.

    `score_step(params, batch)` returns `log_likelihood` and `correct` for each row of `tokens`
    [B, L+1], summed over the `loss_mask` [B, L]. They are replicated on every process.
    """

    score_step: Callable[[Any, dict], Any]
    place: Callable[[dict[str, np.ndarray]], dict]  # puts this process's rows on its devices
    row_share: tuple[int, int]  # (index, count) of this process's share of a batch
    tokenizer: Tokenizer
    batch_size: int  # windows of the full length per batch; more if they are shorter
    max_seq_len: int
    length_parts: int = 1  # devices that share a sequence
    stride: int = 0  # tokens between windows of a long text; 0: max_seq_len

    def score(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Score]:
        """Returns the score of each request; all processes of a run must make the same call.

        After every batch, `advance` is called with the number of finished requests, rounded down.
        """
        return self.score_encoded(
            params, encode_requests(self.tokenizer, requests), advance=advance
        )

    def score_encoded(
        self,
        params: Any,
        requests: Sequence[Encoded],
        *,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Score]:
        """Returns the score of each request, as `score` does, from token ids."""
        cut = functools.partial(
            cut_windows, length=self.max_seq_len, stride=self.stride or self.max_seq_len
        )
        pieces = [list(cut(request)) for request in requests]
        windows = [window for piece in pieces for window in piece]
        log_likelihoods, correct = np.zeros(len(windows)), np.zeros(len(windows))
        batches = list(self._batches(windows))
        results = one_behind(
            self.score_step(params, self._batch(windows, indices, length, rows))
            for indices, length, rows in batches
        )
        done = 0
        for (indices, _, _), result in zip(batches, results, strict=True):
            log_likelihoods[indices] = np.asarray(result.log_likelihood)[: len(indices)]
            correct[indices] = np.asarray(result.correct)[: len(indices)]
            done += len(indices)
            advance(done * len(requests) // len(windows))
        scores, first = [], 0
        for piece in pieces:
            ours = range(first, first + len(piece))
            first = ours.stop
            sums = tuple((float(log_likelihoods[i]), windows[i].scored) for i in ours)
            scores.append(Score(sums, all(correct[i] == windows[i].scored for i in ours)))
        return scores

    def _batches(self, windows: Sequence[Window]) -> Iterator[tuple[list[int], int, int]]:
        """Yields for each batch the indices of its windows, their padded length, and its rows.

        Long windows come first, so that running out of memory happens at once. All batches of a
        length have the same number of rows, so that each length is compiled once.
        """
        buckets: dict[int, list[int]] = {}
        for index, window in enumerate(windows):
            buckets.setdefault(self._padded_length(len(window.ids) - 1), []).append(index)
        for length in sorted(buckets, reverse=True):
            indices = sorted(buckets[length], key=lambda index: -len(windows[index].ids))
            most = self.batch_size * max(1, self.max_seq_len // length)
            rows = self.batch_size
            while rows < min(len(indices), most):
                rows = min(2 * rows, most)
            for first in range(0, len(indices), rows):
                yield indices[first : first + rows], length, rows

    def _padded_length(self, length: int) -> int:
        """Returns the padded length: LEAST_LENGTH, 2 * LEAST_LENGTH, …, at most max_seq_len."""
        size = padded_size(length, least=LEAST_LENGTH * self.length_parts)
        return min(size, self.max_seq_len)

    def _batch(
        self, windows: Sequence[Window], indices: Sequence[int], length: int, rows: int
    ) -> dict[str, Any]:
        """Returns this process's rows of a batch, on its devices."""
        index, count = self.row_share
        size = rows // count
        tokens = np.zeros((size, length + 1), np.int32)
        loss_mask = np.zeros((size, length), np.float32)
        for row, window in enumerate(indices[index * size : (index + 1) * size]):
            ids, scored = windows[window]
            tokens[row, : len(ids)] = ids
            loss_mask[row, len(ids) - 1 - scored : len(ids) - 1] = 1
        return self.place({'tokens': tokens, 'loss_mask': loss_mask})
