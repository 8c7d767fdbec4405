"""A text that the engine generates, as its user sees it."""

import dataclasses
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Ended, Generation, TextRow
from gpt_jax.serve.grammar import JsonText


class ServeError(Exception):
    """The engine cannot do what it was asked for."""


class QueueFullError(ServeError):
    """As many requests wait as may wait; in `retry_seconds` one may have left."""

    def __init__(self, message: str, *, retry_seconds: int):
        super().__init__(message)
        self.retry_seconds = retry_seconds


class RequestTimeoutError(ServeError):
    """A request waited or ran longer than it may."""


class EngineStoppedError(ServeError):
    """The engine is closed, or its worker failed."""


class GrammarError(ServeError):
    """A text cannot go on as the JSON that was asked for."""


class Score(NamedTuple):
    """Log-probabilities of a token by the model itself: temperature 1, no filter, no penalty."""

    logprob: float
    best: list[tuple[int, float]]  # the likeliest ids and theirs, if they were asked for


class Piece(NamedTuple):
    """The next part of a text; the pieces of a request make up its generation."""

    text: str  # never ends inside a character, nor with a possible start of a stop string
    tokens: list[int]  # without end of text
    scores: list[Score]  # of `tokens`
    seconds: float | None = None  # that each token took; None: they are of the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """Settings of a request besides its sampling."""

    sample: int = 0  # number of the text among those of its prompt; others draw other tokens
    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)  # added to logits, by id
    schema: Mapping[str, Any] | None = None  # JSON schema that the text must follow; None: none
    best: int = 0  # likeliest tokens in each score
    scores_prompt: bool = False  # also score the prompt's tokens; it is not looked up in the cache
    draws: bool = True  # False: the request ends after its prompt
    use_cache: bool = True  # False: the model reads the whole text again for each token


class Request:
    """A text that is being generated; iterating yields its pieces as they come.

    Attributes:
      prompt: its ids.
      sampling: how its tokens are drawn, and when it ends.
      options: see `RequestOptions`.
      json: the text as JSON, if it must be; None: any text.
      prompt_scores: of the prompt's tokens but the first, if they were asked for.
      hidden: mean `[D]` of the last hidden states of the prompt, if its scores were asked for.
      reused: tokens of the prompt that an earlier text had left in the cache.
      submitted, started, ended: times of `time.monotonic`; None: not yet.
      is_cancelled: the user wants no more of it.
    """

    def __init__(
        self,
        row: TextRow,
        sampling: SampleConfig,
        options: RequestOptions,
        *,
        json: JsonText | None,
        notify: Callable[[], None],
    ):
        self.prompt = list(row.prompt_tokens)
        self.sampling = sampling
        self.options = options
        self.json = json
        self.prompt_scores: list[Score] = []
        self.hidden: np.ndarray | None = None
        self.reused = 0
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.is_cancelled = False
        self._reason: ServeError | None = None  # why it was cancelled
        self._taken = 0  # tokens that the reader has
        self._row = row
        self._notify = notify
        self._pieces: queue.SimpleQueue[Piece | ServeError | None] = queue.SimpleQueue()

    @property
    def generation(self) -> Generation:
        """The text so far, and why it ended; a cancelled text has not `ended`."""
        return self._row.generation

    @property
    def most_scores(self) -> int:
        """Most scores that the request keeps: of its tokens, and of the likeliest in each place."""
        scored = len(self.prompt) if self.options.scores_prompt else 0
        drawn = self.sampling.max_new_tokens if self.options.draws else 0
        return (scored + drawn) * (1 + self.options.best)

    @property
    def unread(self) -> int:
        """Number of the tokens that wait to be taken."""
        return len(self.generation.tokens) - self._taken

    def cancel(self, reason: ServeError | None = None) -> None:
        """Ends the text after what has come so far, or fails; its row becomes free."""
        self._reason = self._reason or reason
        self.is_cancelled = True

    def __iter__(self) -> Iterator[Piece]:
        """Yields the pieces, each once, and waits for them.

        Raises:
            ServeError: the request failed after the pieces so far.
        """
        while (piece := self._take(self._pieces.get())) is not None:
            yield piece

    def poll(self) -> list[Piece]:
        """Returns the pieces that have come since the last call, without waiting.

        Raises:
            ServeError: the request failed; pieces before that are returned first.
        """
        pieces: list[Piece] = []
        while not self._pieces.empty():
            last = self._pieces.get()
            if not isinstance(last, Piece) and pieces:
                self._pieces.put(last)  # the next call raises it
                break
            if self._take(last) is None:
                break
            pieces.append(last)
        return pieces

    def _take(self, piece: Piece | ServeError | None) -> Piece | None:
        """Returns a piece; None after the last one, which stays for other readers."""
        if isinstance(piece, Piece):
            self._taken += len(piece.tokens)
            return piece
        self._pieces.put(piece)
        if piece is not None:
            raise piece
        return None

    def result(self) -> Generation:
        """Waits for the end and returns the text.

        Raises:
            ServeError: the request failed.
        """
        for _ in self:
            pass
        return self.generation

    def may_end_before(self) -> bool:
        """Returns whether only the text can tell its end: a stop string, or the end of a JSON."""
        return bool(self.sampling.stop) or self.json is not None

    def ends_at(self, tokens: list[int]) -> bool:
        """Returns whether one of the drawn ids ends the text."""
        return self._row.ends_at(tokens)

    def push(
        self,
        tokens: list[int],
        scores: list[Score],
        *,
        is_last: bool,
        seconds: float | None = None,
    ) -> None:
        """Adds drawn ids, each of which took `seconds`; called by the engine only."""
        before = len(self.generation.tokens)
        is_whole = self.json is not None and self.json.push(tokens)
        ended = Ended.END_OF_TEXT if is_whole else Ended.LENGTH
        text = self._row.push(tokens, is_last or is_whole, ended)
        kept = self.generation.tokens[before:]
        if text or kept:
            self._pieces.put(Piece(text, kept, scores[: len(kept)], seconds))
            self._notify()

    def end(self, error: ServeError | None = None) -> None:
        """Ends the pieces, or fails; called by the engine only."""
        if self.ended is None:
            self._pieces.put(error or self._reason)
            self.ended = time.monotonic()  # after the last piece, which `poll` finds then
            self._notify()
