"""The decoding state whose rows requests share, and the programs that change it.

Shapes are few, so that all programs are compiled before the first request: the cache has a power
of two of slots, prompts go in by chunks of two widths, and tokens are drawn by two variants of the
sampling rule.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.inference.decode import LEAST_CAPACITY, Decoder
from gpt_jax.inference.programs import DecodeState, row_key_data
from gpt_jax.inference.sampling import SamplingRule
from gpt_jax.model.cache import cache_bytes_per_token
from gpt_jax.serve.rows import Row, rule_of

NARROW = 16  # tokens of the smaller chunk of a prompt


class Batch:
    """Rows of tokens with their cache, on the device.

    Attributes:
      state: at present.
      most_slots: slots of the cache, of each row, when it is largest.
      cache_bytes: bytes of the cache then.
      programs: number of programs that were compiled; no more are.
      seconds: that a chunk of a prompt takes, by its width.
    """

    def __init__(self, decoder: Decoder, *, rows: int, best: int, chunk: int, drafts: int):
        """Compiles every program.

        Args:
          decoder: has the model.
          rows: of the batch.
          best: likeliest tokens whose log-probabilities are kept.
          chunk: tokens of the wider chunk of a prompt.
          drafts: tokens that are drafted in each pass; 0: none.
        """
        self._decoder = decoder
        self._drafts = drafts
        self._chunks = sorted({NARROW, chunk})
        self._rungs = rungs_to(decoder.config.max_seq_len + max(NARROW, drafts + 1))
        self.most_slots = self._rungs[-1]
        self.cache_bytes = cache_bytes_per_token(decoder.executed_config) * rows * self.most_slots
        self._key_data = np.repeat(row_key_data(0, np.zeros(1, int)), rows, axis=0)  # [B, X]
        self.programs = 0
        self.state: DecodeState = decoder.empty(rows=rows, slots=self._rungs[0], best=best)
        self._warm_up(rows)
        self.seconds = {}
        for width in self.widths(0, self.most_slots):
            self.make_room(width)
            self.seconds[width] = self._time_chunk(width)
        self.resize(self._rungs[0])

    @property
    def slots(self) -> int:
        """The slots of the cache at present, of each row."""
        return self.state.text_BS.shape[1]

    def _warm_up(self, rows: int) -> None:
        """Runs every program once on empty rows, and counts them."""
        empty = [Row(number) for number in range(rows)]
        limit = np.zeros(rows, np.int32)
        self.programs = 1 + 2 * (len(self._rungs) - 1)  # the empty state, and resizing
        for rung in self._rungs:
            self.resize(rung)
            for width in self.widths(0, rung):
                for scores in {False, rung == self.most_slots}:
                    self.extend([0], row=0, start=0, width=width, scores=scores)
                    self.programs += 1
            for is_full in (False, True):
                self.draw(rule_of(empty, self._decoder, is_full=is_full), limit)
                self.programs += 1
        self.resize(self._rungs[0])
        jax.block_until_ready(self.state)

    def _time_chunk(self, width: int) -> float:
        """Returns the seconds that a chunk of a prompt takes; the better of two times."""
        times = []
        for _ in range(2):
            began = time.monotonic()
            self.extend([0], row=0, start=0, width=width)
            jax.block_until_ready(self.state)
            times.append(time.monotonic() - began)
        return min(times)

    def widths(self, start: int, slots: int) -> list[int]:
        """Returns the widths of chunks that fit into `slots` from `start` on, ascending."""
        return [width for width in self._chunks if start + width <= slots]

    def extend(self, tokens: Sequence[int], **place: Any) -> jax.Array:
        """Puts a chunk of tokens into a row; `place` are the options of `Decoder.extend`.

        Returns the sum `[D]` of the tokens' last hidden states. Scoring is compiled for the largest
        cache only.
        """
        self.state, hidden = self._decoder.extend(self.state, tokens, **place)
        return hidden

    def draw(self, rule: SamplingRule, limit: np.ndarray) -> None:
        """Draws tokens until each row has `limit` of them, or has ended; `rule` of `rule_of`."""
        self.state = self._decoder.draw(
            self.state,
            self._key_data,
            rule,
            limit,
            drafts=self._drafts,
            ranks=rule.truncates,
        )

    def set_key(self, row: int, seed: int, sample: int) -> None:
        """Gives a row the random key of a text: of the seed, and its number among the samples."""
        self._key_data[row] = row_key_data(seed, np.array([sample]))[0]

    def make_room(self, slots: int) -> None:
        """Lets the cache grow to `slots`, or to its largest size."""
        slots = min(slots, self.most_slots)
        if slots > self.slots:
            self.resize(next(rung for rung in self._rungs if rung >= slots))

    def give_room(self, slots: int) -> bool:
        """Lets the cache shrink to `slots` if it has four times as many; returns whether."""
        smaller = [rung for rung in self._rungs if 4 * rung <= self.slots and rung >= slots]
        if smaller:
            self.resize(smaller[0])
        return bool(smaller)

    def resize(self, slots: int) -> None:
        """Takes the cache to a rung, by way of those between, for which there are programs."""
        at, to = self._rungs.index(self.slots), self._rungs.index(slots)
        step = 1 if to > at else -1
        while at != to:
            at += step
            self.state = self._decoder.resize(self.state, slots=self._rungs[at])


def rungs_to(most: int) -> list[int]:
    """Returns the sizes of the cache: powers of two from the least capacity on, and `most`."""
    rungs = [LEAST_CAPACITY]
    while rungs[-1] * 2 < most:
        rungs.append(rungs[-1] * 2)
    return [*rungs, most] if rungs[-1] < most else [most]
