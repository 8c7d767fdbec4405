"""The windows that training and evaluation read: stretches of a text, or documents.

A window is a span of at most seq_len + 1 tokens. One that is shorter is padded, and the padding is
not learned.
"""

import functools
from typing import Protocol

import numpy as np

from gpt_jax.data.config import Windows
from gpt_jax.data.shards import Shards
from gpt_jax.errors import UserError


class Spans(Protocol):
    """The spans of the windows of one epoch."""

    count: int

    def span(self, window: int, epoch: int) -> tuple[int, int]:
        """Returns the position of the first token of a window, and the one after its last."""


class PhasedSpans:
    """Windows of full length, cut at another place in each epoch.

    Each epoch draws a phase p in [1, T] and cuts at p, p + T, p + 2T, …. The windows at both ends
    are shifted inwards to full length. So every epoch predicts every token, a few near the ends
    twice, and has the same number of windows.
    """

    def __init__(self, shards: Shards, *, seq_len: int, entropy: tuple[int, ...]):
        """Takes the numbers that the phases are drawn from.

        Raises:
            UserError: the text is shorter than one window.
        """
        targets = shards.num_tokens - 1
        if targets < seq_len:
            raise UserError(
                f'{shards.name} has {shards.num_tokens} tokens, fewer than one window of '
                f'{seq_len + 1}; lower config.model.max_seq_len or give more text with '
                'config.data.source'
            )
        self._seq_len, self._last_start = seq_len, targets - seq_len
        self.count = 1 + -(-(targets - 1) // seq_len)

        @functools.lru_cache(maxsize=4)
        def phase(epoch: int) -> int:
            state = np.random.SeedSequence((*entropy, epoch)).generate_state(1, np.uint64)
            return 1 + int(state[0]) % seq_len

        self._phase = phase

    def span(self, window: int, epoch: int) -> tuple[int, int]:
        """Returns the span of a window."""
        start = self._phase(epoch) + (window - 1) * self._seq_len
        start = min(max(start, 0), self._last_start)
        return start, start + self._seq_len + 1


class OrderedSpans:
    """Windows from the first token on; the last may be shorter. Each predicts other tokens."""

    def __init__(self, shards: Shards, *, seq_len: int):
        """Raises UserError if the text has no token to predict."""
        if shards.num_tokens < 2:
            raise _nothing_to_predict(shards)
        self._seq_len, self._num_tokens = seq_len, shards.num_tokens
        self.count = -(-(shards.num_tokens - 1) // seq_len)

    def span(self, window: int, epoch: int) -> tuple[int, int]:
        """Returns the span of a window, the same in all epochs."""
        del epoch
        start = window * self._seq_len
        return start, min(start + self._seq_len + 1, self._num_tokens)


class DocumentSpans:
    """A window for each document: the document and, where it fits, the end-of-text token after it.

    The end-of-text token before a document is left out, as it is before a prompt.
    """

    def __init__(self, shards: Shards, *, seq_len: int):
        """Raises UserError if a document is too long, or there is none to predict a token of."""
        starts, stops = shards.documents.T
        longest = int((stops - starts).max(initial=0))
        if longest > seq_len + 1:
            raise UserError(
                f'{shards.name} has a document of {longest} tokens, and a window holds '
                f'{seq_len + 1}: set config.model.max_seq_len={longest - 1} or '
                f'config.data.windows=continuous'
            )
        stops = np.minimum(stops + 1, np.minimum(starts + seq_len + 1, shards.num_tokens))
        kept = stops - starts > 1
        self._starts, self._stops = starts[kept], stops[kept]
        self.count = len(self._starts)
        if not self.count:
            raise _nothing_to_predict(shards)

    def span(self, window: int, epoch: int) -> tuple[int, int]:
        """Returns the span of a document, the same in all epochs."""
        del epoch
        return int(self._starts[window]), int(self._stops[window])


def training_spans(
    windows: Windows, shards: Shards, *, seq_len: int, entropy: tuple[int, ...]
) -> Spans:
    """Returns the windows of `config.data.windows` for training.

    Raises:
        UserError: the data has no such windows.
    """
    if windows == Windows.DOCUMENTS:
        return DocumentSpans(shards, seq_len=seq_len)
    return PhasedSpans(shards, seq_len=seq_len, entropy=entropy)


def evaluation_spans(windows: Windows, shards: Shards, *, seq_len: int) -> Spans:
    """Returns the windows of `config.data.windows` for evaluation, which predict a token once.

    Raises:
        UserError: the data has no such windows.
    """
    kinds = {Windows.CONTINUOUS: OrderedSpans, Windows.DOCUMENTS: DocumentSpans}
    return kinds[windows](shards, seq_len=seq_len)


def read_window(
    shards: Shards, span: tuple[int, int], *, seq_len: int, segment_ids: bool, loss_mask: bool
) -> dict[str, np.ndarray]:
    """Returns the arrays of a window, padded with 0.

    Args:
      shards: the text.
      span: of the window.
      seq_len: predicted tokens of a full window.
      segment_ids: also return the document of every token, counted from 1.
      loss_mask: also return which targets are learned.
    """
    start, stop = span
    arrays = {'tokens': shards.read(start, stop)}
    if segment_ids:
        arrays['segment_ids'] = shards.segment_ids(start, stop)
    if loss_mask:
        arrays['loss_mask'] = shards.loss_mask(start + 1, stop)
    missing = seq_len + 1 - (stop - start)
    return {name: pad(array, missing) for name, array in arrays.items()}


def pad(array: np.ndarray, missing: int) -> np.ndarray:
    """Returns an array with `missing` zeros after it."""
    return np.pad(array, (0, missing)) if missing else array


def tokens_of_epoch(windows: Windows, shards: Shards, *, seq_len: int) -> int:
    """Returns the tokens of an epoch's windows; those of documents count with their padding."""
    if windows == Windows.DOCUMENTS:
        return DocumentSpans(shards, seq_len=seq_len).count * seq_len
    return shards.num_tokens


def _nothing_to_predict(shards: Shards) -> UserError:
    return UserError(
        f'{shards.name} has {shards.num_tokens} tokens and so none to predict; '
        'change config.data.split or config.data.source'
    )
