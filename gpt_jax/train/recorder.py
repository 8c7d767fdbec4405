"""The metrics of training steps on their way to rows and to the progress line."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax.config import RunConfig
from gpt_jax.telemetry.progress import Progress


class Recorder:
    """The writer of rows and of the progress line; it reads a call's metrics one call later."""

    def __init__(
        self,
        config: RunConfig,
        *,
        write: Callable[[int, dict[str, float]], None],
        throughput: Callable[[float], dict[str, float]],
        progress: Progress,
        first: int,
    ):
        self.bad_steps = 0  # in a row, at the end of the last call that was read
        self._config, self._progress = config, progress
        self._write, self._throughput = write, throughput
        self._tokens_per_step = config.train.batch_size * config.model.max_seq_len
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._losses: list[float] = []  # of the steps since the last row
        self._waited = 0.0  # seconds that steps waited for data since the last row
        self._clock = time.perf_counter()  # start of the steps of the next row
        self._clock_step = first

    def remember(self, done: int, metrics: dict[str, jax.Array], waited: float) -> None:
        """Stores the metrics of the call that ended with step `done`."""
        self._pending = (done, metrics)
        self._waited += waited

    def restart_clock(self, done: int) -> None:
        """Restarts the clock at step `done`; excludes, for example, an evaluation after it."""
        self._clock, self._clock_step, self._waited = time.perf_counter(), done, 0.0

    def read_previous(self) -> None:
        """Reads the metrics stored last, and writes the rows that are due."""
        if self._pending is None:
            return
        (done, metrics), self._pending = self._pending, None
        values = jax.tree.map(np.atleast_1d, jax.device_get(metrics))
        steps = range(done - len(values['loss']) + 1, done + 1)
        self.bad_steps = int(values['bad_steps'][-1])
        fields = {'loss': float(values['loss'][-1])}
        due = [step for step in steps if step % self._config.train.log_every == 0]
        means = self._mean_losses(steps, values['loss'])
        if due:
            speed = self._speed(done)
            for step in due:
                row = {name: float(value[step - steps[0]]) for name, value in values.items()}
                row['loss'] = means[step]
                row['tokens'] = float(step * self._tokens_per_step)
                row = {f'train/{name}': value for name, value in (row | speed).items()}
                self._write(step, row)
            fields['tok/s'] = speed['tokens_per_second']
        self._progress.update(done, **fields)

    def _mean_losses(self, steps: range, losses: np.ndarray) -> dict[int, float]:
        """Returns the mean loss since the previous row, for each step that gets a row."""
        means = {}
        for step, loss in zip(steps, losses, strict=True):
            self._losses.append(float(loss))
            if step % self._config.train.log_every == 0:
                means[step] = sum(self._losses) / len(self._losses)
                self._losses = []
        return means

    def _speed(self, done: int) -> dict[str, float]:
        """Returns the speeds from the previous row to the end of the call that was read."""
        now = time.perf_counter()
        steps = done - self._clock_step
        rate = steps * self._tokens_per_step / (now - self._clock)
        waited = self._waited / steps
        self._clock, self._clock_step, self._waited = now, done, 0.0
        measured = {'tokens_per_second': rate, 'data_wait_seconds': waited}
        return measured | self._throughput(rate)
