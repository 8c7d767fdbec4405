"""A text that the engine generates, as its user sees it."""

import queue
import time
from collections.abc import Iterator
from typing import NamedTuple

from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Generation, TextRow


class ServeError(Exception):
    """The engine cannot do what it was asked for."""


class QueueFullError(ServeError):
    """As many requests wait as may wait."""


class RequestTimeoutError(ServeError):
    """A request waited or ran longer than it may."""


class EngineStoppedError(ServeError):
    """The engine is closed, or its worker failed."""


class Piece(NamedTuple):
    """The next part of a text; the pieces of a request make up its generation."""

    text: str  # never ends inside a character, nor with a possible start of a stop string
    tokens: list[int]  # without end of text
    logprobs: list[float]  # of `tokens`, by the model itself (temperature 1, no filter), or empty


class Request:
    """A text that is being generated; iterating yields its pieces as they come.

    Attributes:
      prompt: its ids.
      sampling: how its tokens are drawn, and when it ends.
      sample: the number of the text among those of its prompt and seed.
      reused: tokens of the prompt that an earlier text had left in the cache.
      submitted, started, ended: times of `time.monotonic`; None: not yet.
      is_cancelled: the user wants no more of it.
    """

    def __init__(self, row: TextRow, sampling: SampleConfig, *, sample: int):
        self.prompt = list(row.prompt_tokens)
        self.sampling = sampling
        self.sample = sample
        self.reused = 0
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.is_cancelled = False
        self._row = row
        self._pieces: queue.SimpleQueue[Piece | ServeError | None] = queue.SimpleQueue()

    @property
    def generation(self) -> Generation:
        """The text so far, and why it ended; a cancelled text has not `ended`."""
        return self._row.generation

    def cancel(self) -> None:
        """Ends the text after what has come so far; its row becomes free."""
        self.is_cancelled = True

    def __iter__(self) -> Iterator[Piece]:
        """Yields the pieces, each once, and waits for them.

        Raises:
            ServeError: the request failed after the pieces so far.
        """
        while isinstance(piece := self._pieces.get(), Piece):
            yield piece
        self._pieces.put(piece)  # for another iterator
        if piece is not None:
            raise piece

    def result(self) -> Generation:
        """Waits for the end and returns the text.

        Raises:
            ServeError: the request failed.
        """
        for _ in self:
            pass
        return self.generation

    def push(self, tokens: list[int], logprobs: list[float], *, is_last: bool) -> None:
        """Adds drawn ids; called by the engine only."""
        before = len(self.generation.tokens)
        text = self._row.push(tokens, is_last)
        kept = self.generation.tokens[before:]
        if text or kept:
            self._pieces.put(Piece(text, kept, logprobs[: len(kept)]))

    def end(self, error: ServeError | None = None) -> None:
        """Ends the pieces, or fails; called by the engine only."""
        if self.ended is None:
            self.ended = time.monotonic()
            self._pieces.put(error)
