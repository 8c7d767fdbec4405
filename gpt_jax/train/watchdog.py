"""A watchdog for processes that are alive but make no progress, which nothing else detects."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Self

import jax

from gpt_jax.parallel import peers

# A Python thread cannot run while another holds the GIL, but faulthandler's C thread can.
_SECOND_CHANCE_SECONDS = 15.0
# The stalled process must print its stacks before another process ends it. The processes' last
# steps, and so their timeouts, are at most one step apart.
_OTHERS_SECONDS = 5.0
# Evaluations, samples and saves, with their compilation, may take this many times the timeout.
PATIENCE = 20
# The service that tells the other processes the reason ends with the first process.
_FAREWELL_SECONDS = 3.0


class Watchdog:
    """A context that prints all stacks and ends the process if `beat` is not called in time.

    With 0 seconds it does nothing. The exit status is `peers.LOST`: restart all processes.
    """

    def __init__(self, seconds: float):
        self._seconds = self._allowed = seconds
        self._last = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        if self._seconds:
            self.beat()
            threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Restarts the timeout."""
        self._last = time.monotonic()
        if self._seconds:
            faulthandler.dump_traceback_later(self._allowed + _SECOND_CHANCE_SECONDS, exit=True)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Allows PATIENCE times the timeout within the block, for work other than steps."""
        self._allowed = PATIENCE * self._seconds
        self.beat()
        try:
            yield
        finally:
            self._allowed = self._seconds
            self.beat()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._allowed:
                self._end()

    def _end(self) -> None:
        times = '' if self._allowed == self._seconds else f' times {PATIENCE}'
        what = f'no step for {self._allowed:g} s (config.train.step_timeout{times})'
        who = f'process {peers.process_id()}: ' if peers.num_processes() > 1 else ''
        line = f'error: {who}{what}; the stacks of its threads:\n'
        os.write(sys.stderr.fileno(), line.encode())
        faulthandler.dump_traceback(all_threads=True)
        if peers.num_processes() > 1:
            time.sleep(_OTHERS_SECONDS)
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                peers.announce_failure(peers.LOST, what)
            if peers.is_primary():
                time.sleep(_FAREWELL_SECONDS)
        os._exit(peers.LOST)
