"""Continuous batching: texts join and leave a batch of fixed rows while it is decoded.

The rows of one decoding state are lent to requests. In each turn the worker thread gives free rows
to waiting requests, puts a part of their prompts into the cache, and draws a few tokens of all
other texts. The programs are those of `gpt_jax.inference.programs`, so a text is the one that
`--mode generate` writes, up to rounding, whoever shares the batch.

New tokens become texts while the device draws the next ones. A free row keeps its tokens: a request
takes the free row that has most of the beginning of its prompt, and only puts the rest into the
cache.
"""

import collections
import dataclasses
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig, finalize_sample
from gpt_jax.inference.decode import Decoder
from gpt_jax.inference.generate import Prompt, TextRow, make_decoder
from gpt_jax.model.config import ModelConfig
from gpt_jax.serve.batch import NARROW, Batch
from gpt_jax.serve.config import ServeConfig, finalize_serve
from gpt_jax.serve.grammar import JsonGrammars
from gpt_jax.serve.request import (
    EngineStoppedError,
    GrammarError,
    QueueFullError,
    Request,
    RequestOptions,
    RequestTimeoutError,
    ServeError,
)
from gpt_jax.serve.rows import Row, reusable, rule_of, scores_of
from gpt_jax.tokenizer import Tokenizer

TURN_SECONDS = 0.05  # of drawing tokens before the host looks at requests again
MOST_PER_TURN = 32  # tokens per text and turn
RECENT = 2  # turns since the end of a text in which its user may ask again, and is soon served
FEW_PER_TURN = 4  # tokens per text in such turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """The load of an engine, and what it did since its start."""

    running: int  # texts with a row
    waiting: int  # texts without
    slots: int  # of the cache, per row, at present
    finished: int  # texts that ended, for whatever reason
    prompt_tokens: int  # of all texts that got a row
    reused_tokens: int  # of these, found in the cache
    drawn_tokens: int


class Engine:
    """A model that serves many requests at once; its methods may be called from any thread.

    Attributes:
      programs: number of programs that were compiled before the first request; none is later.
      cache_bytes: of the cache when it is largest.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        tokenizer: Tokenizer,
        serve: ServeConfig | None = None,
        **options: Any,
    ):
        """Compiles every program, and starts the worker; `options` are those of `Decoder`.

        Raises:
            UserError: a setting cannot work, or the run has several processes.
        """
        self.config = serve or ServeConfig()
        finalize_serve(self.config)
        if jax.process_count() > 1:
            raise UserError('serving runs in one process; start it on one machine')
        self._tokenizer = tokenizer
        self._decoder: Decoder = make_decoder(config, params, tokenizer, **options)
        self._grammars = JsonGrammars(tokenizer)
        count = max(self.config.rows, self._decoder.least_rows)
        self._rows = [Row(number) for number in range(count)]
        self._batch = Batch(
            self._decoder,
            rows=count,
            best=min(self.config.best, self._decoder.vocab_size),  # ids beyond it are no tokens
            chunk=self.config.prefill_chunk,
            drafts=self.config.draft_tokens,
        )
        self.programs, self.cache_bytes = self._batch.programs, self._batch.cache_bytes
        self._per_turn = 1  # tokens of each text
        self._turn = 0
        self._counts = collections.Counter[str]()
        self._queue = collections.deque[Request]()
        self._took = collections.deque[float](maxlen=16)  # seconds of the latest requests
        # Calls of requests' methods that `_tell` makes.
        self._later = collections.deque[tuple[Request, Callable[[], None]]]()
        self._wakes = threading.Condition()
        self._error: ServeError | None = None
        self._thread = threading.Thread(target=self._work, name='engine', daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return (
            f'{len(self._rows)} rows of up to {self._batch.most_slots:,} slots: a cache of at most '
            f'{self.cache_bytes / 1e6:,.1f} MB; {self.programs} programs compiled'
        )

    def prepare(
        self,
        prompt: Prompt,
        sampling: SampleConfig,
        options: RequestOptions | None = None,
        *,
        notify: Callable[[], None] = lambda: None,
    ) -> Request:
        """Returns a request for `enqueue`.

        Args:
          prompt: a text, or its ids.
          sampling: as for `--mode generate`; `num_samples`, `chunk` and `draft_tokens` change
            nothing here.
          options: None: the defaults.
          notify: called by the worker after each piece, and at the end; must return at once.

        Raises:
            UserError: a setting cannot work, or the prompt is empty, has an id that is not in the
                vocabulary, or is longer than the context, or the schema cannot be followed.
        """
        finalize_sample(sampling)
        options = options or RequestOptions()
        if options.best > self.config.best:
            raise UserError(
                f'{options.best} likeliest tokens were asked for, config.serve.best='
                f'{self.config.best} allows fewer'
            )
        row = TextRow(prompt, self._tokenizer, sampling.stop)
        json = None if options.schema is None else self._grammars.start(options.schema)
        request = Request(row, sampling, options, json=json, notify=notify)
        self._decoder.check_prompt(request.prompt)
        for token in options.bias:
            self._tokenizer.id_to_bytes(token)  # refuses ids that are not in the vocabulary
        return request

    def enqueue(self, requests: Sequence[Request]) -> None:
        """Queues requests, all or none of them.

        Raises:
            QueueFullError: as many requests wait as may wait; otherwise all of these may.
            EngineStoppedError: the engine is closed, or its worker failed.
        """
        with self._wakes:
            if self._error is not None:
                raise self._error
            if len(self._queue) >= self.config.queue:
                raise QueueFullError(
                    f'{len(self._queue)} texts wait for a row (config.serve.queue); try later',
                    retry_seconds=self._seconds_to_next(),
                )
            self._queue.extend(requests)
            self._wakes.notify()

    def status(self) -> EngineStatus:
        """Returns the load and the counts."""
        with self._wakes:
            return EngineStatus(
                running=sum(row.request is not None for row in self._rows),
                waiting=len(self._queue),
                slots=self._batch.slots,
                finished=self._counts['finished'],
                prompt_tokens=self._counts['prompt_tokens'],
                reused_tokens=self._counts['reused_tokens'],
                drawn_tokens=self._counts['drawn_tokens'],
            )

    @property
    def failure(self) -> ServeError | None:
        """The reason why no more requests are taken, if there is one."""
        return self._error

    def _seconds_to_next(self) -> int:
        """Returns about how long it takes until a row is free, by the latest requests."""
        mean = sum(self._took) / max(1, len(self._took))
        return max(1, round(mean / len(self._rows)))

    def close(self, reason: str = 'the engine is closed') -> None:
        """Stops the worker after its turn; requests that have not ended fail."""
        self._stop(EngineStoppedError(reason))
        self._thread.join()

    def __enter__(self) -> 'Engine':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self, error: ServeError) -> None:
        with self._wakes:
            self._error = self._error or error
            self._wakes.notify()

    def _work(self) -> None:
        """Runs turns until the engine stops; then fails all requests."""
        try:
            while self._wait():
                self._take_turn()
            self._tell()
        except Exception as error:
            logging.exception('the engine failed')
            failure = EngineStoppedError(f'the engine failed: {error}')
            failure.__cause__ = error
            self._stop(failure)
        with self._wakes:
            requests = [row.request for row in self._rows if row.request] + list(self._queue)
            self._queue.clear()
        for request in [request for request, _ in self._later] + requests:
            request.end(self._error)

    def _wait(self) -> bool:
        """Waits for something to do; returns False if the engine stops."""
        with self._wakes:
            self._wakes.wait_for(
                lambda: self._error or self._queue or any(row.request for row in self._rows)
            )
            return self._error is None

    def _take_turn(self) -> None:
        self._turn += 1
        self._drop()
        self._admit()
        spent = 0.0
        while filling := [row for row in self._rows if row.waiting]:
            others_wait = any(row.request and not row.waiting for row in self._rows)
            left = self.config.stall_seconds - spent if others_wait else math.inf
            if spent and left <= 0:
                break
            spent += self._fill(min(filling, key=lambda row: row.request.started), left)
            self._tell()
        drawing = [row for row in self._rows if row.request and not row.waiting]
        if drawing:
            self._draw(drawing)
        if not any(row.request for row in self._rows):
            self._tell()

    def _tell(self) -> None:
        """Hands requests their new tokens, and ends them.

        It is called when the device has work, because turning tokens into texts takes a while.
        """
        while self._later:
            _, action = self._later[0]
            action()
            self._later.popleft()  # a request that cannot be told fails with the engine

    def _drop(self) -> None:
        """Ends requests that are cancelled or late."""
        now = time.monotonic()
        serve = self.config
        with self._wakes:
            queue = list(self._queue)
            self._queue.clear()
            for request in queue:
                waited = now - request.submitted
                if request.is_cancelled:
                    self._end(request)
                elif waited > min(serve.queue_seconds, serve.request_seconds):
                    self._end(
                        request,
                        RequestTimeoutError(
                            f'no row became free in {waited:.1f} s (config.serve.queue_seconds)'
                        ),
                    )
                else:
                    self._queue.append(request)
        for row in self._rows:
            if row.request is None:
                continue
            took = now - row.request.submitted
            if row.request.is_cancelled:
                self._free(row)
            elif took > serve.request_seconds:
                late = f'the text took longer than {took:.1f} s (config.serve.request_seconds)'
                self._free(row, RequestTimeoutError(late))

    def _admit(self) -> None:
        """Gives free rows to the requests that have waited longest."""
        with self._wakes:
            free = [row for row in self._rows if row.request is None]
            while self._queue and free:
                request = self._queue.popleft()
                row = max(free, key=lambda row: (reusable(row.tokens, request), -row.freed))
                free.remove(row)
                self._lend(row, request)
        most = max((self._needs(row) for row in self._rows if row.request), default=0)
        if self._batch.give_room(most):
            for row in self._rows:
                row.tokens = row.tokens[: self._batch.slots]

    def _lend(self, row: Row, request: Request) -> None:
        request.started = time.monotonic()
        request.reused = reusable(row.tokens, request)
        row.request, row.drawn, row.refills, row.hidden = request, 0, False, 0.0
        row.since = request.started
        row.tokens, row.waiting = (
            request.prompt[: request.reused],
            request.prompt[request.reused :],
        )
        self._batch.set_key(row.number, request.sampling.seed, request.options.sample)
        self._counts['prompt_tokens'] += len(request.prompt)
        self._counts['reused_tokens'] += request.reused

    def _needs(self, row: Row) -> int:
        """Returns the slots that a text needs until its end."""
        if row.request.options.scores_prompt:
            return self._batch.most_slots
        text = len(row.request.prompt) + row.request.sampling.max_new_tokens
        return min(text + NARROW + self.config.draft_tokens, self._batch.most_slots)

    def _fill(self, row: Row, seconds: float) -> float:
        """Puts the next chunk of a row's tokens into the cache; returns about how long it takes.

        That is no more than `seconds`, or the narrowest chunk.
        """
        start, count = len(row.tokens), len(row.waiting)
        batch = self._batch
        narrow, *wider = batch.widths(start, batch.most_slots)
        fits = [width for width in wider if batch.seconds[width] <= seconds and count > width // 2]
        width = fits[-1] if fits else narrow
        scores = row.request.options.scores_prompt and not row.refills
        batch.make_room(batch.most_slots if scores else start + width)
        chunk = row.waiting[:width]
        hidden = batch.extend(
            chunk, row=row.number, start=start, width=width, outgrew=row.refills, scores=scores
        )
        row.tokens, row.waiting = row.tokens + chunk, row.waiting[width:]
        if scores:
            row.hidden = row.hidden + np.asarray(hidden)
            if not row.waiting:
                self._hand_scores(row)
        if not row.waiting and not row.request.options.draws:
            end = functools.partial(row.request.push, [], [], is_last=True)
            self._later.append((row.request, end))
            self._free(row)
        return batch.seconds[width]

    def _hand_scores(self, row: Row) -> None:
        """Gives a request the scores of its prompt, all of which is in the cache."""
        request = row.request
        scores = jax.device_get(self._batch.state.scores)
        request.hidden = np.asarray(row.hidden) / len(row.tokens)
        request.prompt_scores = scores_of(
            scores, row.number, range(1, len(row.tokens)), best=request.options.best
        )

    def _draw(self, rows: list[Row]) -> None:
        """Draws the next tokens of the rows, and hands them to their requests.

        That is one token while prompts wait, so that rows do not stay empty for long, and while a
        text must be JSON, because only the host knows which tokens can come after the last one.
        """
        is_filling = any(row.waiting for row in self._rows)
        most = 1 if is_filling or any(row.request.json for row in rows) else self._per_turn
        if any(not row.request and self._turn - row.freed <= RECENT for row in self._rows):
            most = min(most, FEW_PER_TURN)
        # The turn ends with the first text, whose row another may take.
        remaining = [row.request.sampling.max_new_tokens - row.drawn for row in rows]
        most = min(most, *remaining)
        context = self._decoder.config.max_seq_len
        limit = np.array([row.drawn for row in self._rows], np.int32)
        for row in rows:
            room = context + 1 - len(row.tokens)
            limit[row.number] += min(most, room) if row.request.options.use_cache else 1
        self._batch.make_room(
            max(len(row.tokens) for row in rows) + most + self.config.draft_tokens
        )
        rule = rule_of(self._rows, self._decoder)
        jax.block_until_ready(self._batch.state)
        began = time.monotonic()
        for row in rows:
            if not row.drawn and row.request.options.use_cache:
                row.since = began  # reading the prompt is not the time of a token
        self._batch.draw(rule, limit)
        self._tell()
        state = self._batch.state
        scores = state.scores
        if not any(row.request.options.best for row in rows):  # they stay on the device
            scores = scores.replace(best_BSK=None, best_ids_BSK=None)
        drawn, text, scores = jax.device_get((state.drawn_B, state.text_BS, scores))
        most_drawn = max(int(drawn[row.number]) - row.drawn for row in rows)
        now = time.monotonic()
        per_token = (now - began) / most_drawn
        self._per_turn = int(min(max(1, TURN_SECONDS / per_token), MOST_PER_TURN))
        for row in rows:
            request = row.request
            new = range(len(row.tokens), len(row.tokens) + int(drawn[row.number]) - row.drawn)
            tokens = text[row.number, new.start : new.stop].tolist()
            row.tokens = row.tokens + tokens
            row.drawn += len(tokens)
            self._counts['drawn_tokens'] += len(tokens)
            is_last = row.drawn >= request.sampling.max_new_tokens
            push = functools.partial(
                request.push,
                tokens,
                scores_of(scores, row.number, new, best=request.options.best),
                is_last=is_last,
                seconds=(now - row.since) / max(1, len(tokens)),
            )
            self._later.append((request, push))
            row.since = now
            if request.may_end_before():
                self._tell()
            if is_last or request.ends_at(tokens) or request.generation.ended:
                self._free(row)
            elif request.json and request.json.error:
                self._free(row, GrammarError(f'the JSON cannot go on: {request.json.error}'))
            elif len(row.tokens) > context:  # the text goes on from its last part
                row.waiting, row.tokens = row.tokens[-max(1, context // 2) :], []
                row.refills = True
            elif not row.request.options.use_cache:
                row.waiting, row.tokens, row.refills = row.tokens, [], True

    def _free(self, row: Row, error: ServeError | None = None) -> None:
        """Takes the row back; its tokens stay in the cache."""
        self._end(row.request, error)
        row.request, row.waiting, row.freed = None, [], self._turn

    def _end(self, request: Request, error: ServeError | None = None) -> None:
        self._counts['finished'] += 1
        if request.started is not None:
            self._took.append(time.monotonic() - request.started)
        self._later.append((request, functools.partial(request.end, error)))
