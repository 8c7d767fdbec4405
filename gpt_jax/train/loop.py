"""The training loop: the order of everything that happens between two steps."""

import contextlib
import dataclasses
import enum
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gpt_jax.config import RunConfig
from gpt_jax.errors import UserError
from gpt_jax.evaluate import Evaluation
from gpt_jax.evaluate.task import Metric, flatten
from gpt_jax.telemetry.progress import Progress
from gpt_jax.train.program import Program
from gpt_jax.train.state import TrainState


class Outcome(enum.Enum):
    """The result of `run`."""

    COMPLETE = 'complete'
    STOPPED = 'stopped'  # on request; the state is saved


def _nothing(*_: Any) -> None:
    """Does nothing; the default of optional hooks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """The callbacks of the training loop."""

    evaluate: Callable[[TrainState], dict[str, Evaluation]]  # by prefix: 'eval', 'eval_ema'
    throughput: Callable[[float], dict[str, float]]  # tokens/s -> more metrics
    measure: Callable[[TrainState], dict[str, dict[str, Metric]]] | None = None  # tasks
    sample: Callable[[TrainState], str] | None = None  # a text to show
    save: Callable[[TrainState, int, float | None], None] = _nothing  # state, step, eval loss
    set_loss: Callable[[int, float], None] = _nothing  # step, eval loss; the step is saved already
    keep_sample: Callable[[int, str], None] = _nothing  # step, text
    way_back: Callable[[], str] = lambda: ''  # how to resume from an older step
    write: Callable[[int, dict[str, float]], None] = _nothing  # a row of metrics
    flush: Callable[[], None] = _nothing  # writes all rows to disk before it returns
    stop: Callable[[], bool] = lambda: False  # polled after every call
    alive: Callable[[], None] = _nothing  # called after every call, for the watchdog
    pause: Callable[[], contextlib.AbstractContextManager] = (
        contextlib.nullcontext
    )  # wraps evaluation, tasks, sampling and saving


def run(
    program: Program,
    config: RunConfig,
    *,
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    hooks: Hooks,
    progress: Progress,
    best_loss: float = math.inf,
    evaluate_first: bool = False,
) -> tuple[TrainState, Outcome]:
    """Trains from `state` to `config.train.num_steps`, in calls of one or several steps.

    Metrics of a call are read after the next call is dispatched, so that the device never waits
    for the host. Rows up to a step are on disk before the checkpoint of that step.

    Args:
      batches: the batches from the state's step on.
      best_loss: the lowest evaluation loss of a saved checkpoint so far.
      evaluate_first: evaluate the given state before its first step.

    Raises:
        UserError: too many steps in a row, or the last ones, were not finite; nothing is saved.
    """
    num_steps = config.train.num_steps
    done = int(state.step)
    recorder = _Recorder(config, hooks, progress, done)
    compiled: set[int] = set()  # lengths of calls
    if evaluate_first:
        with hooks.pause():
            best_loss = min(best_loss, recorder.evaluation(done, hooks.evaluate(state)))
    while done < num_steps:
        count = program.call_length(done, num_steps)
        began = time.perf_counter()
        call = list(itertools.islice(batches, count))
        waited = time.perf_counter() - began
        if count not in compiled:
            recorder.read_previous()  # before compiling, so that its speed excludes that
            progress.announce('compiling the training step')
        state, metrics = program.advance(state, call)
        if count not in compiled:  # a first call returns after compilation
            compiled.add(count)
            recorder.restart_clock(done)
        done += count
        recorder.read_previous()
        recorder.remember(done, metrics, waited)
        hooks.alive()

        last, stopping = done == num_steps, hooks.stop()
        # A stop leaves only seconds to save. The resumed run evaluates (`evaluate_first`).
        leaving = stopping and not last
        evaluating = not leaving and (last or due(config.eval.every, done))
        measuring = hooks.measure is not None and (last or due(config.eval.tasks_every, done))
        sampling = hooks.sample is not None and (last or due(config.sample.every, done))
        saving = last or stopping or due(config.checkpoint.save_every, done)
        if evaluating or measuring or sampling or saving:
            recorder.read_previous()
        _check_progress(recorder.bad_steps, done, config, hooks, last=last)
        if not (evaluating or measuring or sampling or saving):
            continue
        began = time.monotonic()
        with hooks.pause():
            if last or leaving:  # save first: an error below must not lose the checkpoint
                hooks.flush()
                hooks.save(state, done, None)
            if leaving:
                return state, Outcome.STOPPED
            eval_loss = None
            if evaluating:
                eval_loss = recorder.evaluation(done, hooks.evaluate(state))
                if config.checkpoint.keep_best and eval_loss < best_loss:
                    best_loss, saving = eval_loss, True
            if last:
                hooks.flush()
                hooks.set_loss(done, eval_loss)
            if measuring:
                recorder.tasks(done, hooks.measure(state))
            if saving and not last:
                hooks.flush()
                hooks.save(state, done, eval_loss)
            if sampling:  # after saving, because a checkpoint does not depend on samples
                text = hooks.sample(state)
                progress.print(f'--- sample at step {done}\n{text}\n---')
                hooks.keep_sample(done, text)
        recorder.restart_clock(done)
        progress.skip(time.monotonic() - began)
    return state, Outcome.COMPLETE


def due(every: int, step: int) -> bool:
    """Returns whether `step` is a multiple of `every`; 0 means never."""
    return every > 0 and step % every == 0


def _check_progress(
    bad_steps: int, step: int, config: RunConfig, hooks: Hooks, *, last: bool
) -> None:
    """Raises UserError after too many non-finite steps in a row."""
    limit = config.train.max_bad_steps
    if last:  # stricter at the end, but a single bad batch is allowed
        limit = min(limit, 2, config.train.num_steps)
    if bad_steps < limit:
        return
    hooks.flush()
    raise UserError(
        f'{bad_steps} steps in a row up to step {step} had a loss, gradient or weights that are '
        f'not finite; lower config.optimizer.learning_rate or raise config.train.max_bad_steps'
        f'{hooks.way_back()}'
    )


class _Recorder:
    """The writer of rows and of the progress line; it reads a call's metrics one call later."""

    def __init__(self, config: RunConfig, hooks: Hooks, progress: Progress, first: int):
        self.bad_steps = 0  # in a row, at the end of the last call that was read
        self._config, self._hooks, self._progress = config, hooks, progress
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
                self._hooks.write(step, row)
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
        return measured | self._hooks.throughput(rate)

    def evaluation(self, step: int, results: dict[str, Evaluation]) -> float:
        """Writes an evaluation's row and line; returns the loss that selects the best step."""
        row = {
            f'{prefix}/{name}': float(value)
            for prefix, result in results.items()
            for name, value in result.row().items()
        }
        self._hooks.write(step, row)
        parts = [f'{prefix} loss {result.describe()}' for prefix, result in results.items()]
        self._progress.print(f'step {step}: ' + ', '.join(parts))
        return results['eval'].loss

    def tasks(self, step: int, results: dict[str, dict[str, Metric]]) -> None:
        """Writes the row and the lines of the tasks."""
        row = {}
        for name, metrics in results.items():
            row |= {f'{name}/{key}': value for key, value in flatten(metrics).items()}
            numbers = [
                f'{key} {value:.4f} ± {error:.4f}' for key, (value, error) in metrics.items()
            ]
            self._progress.print(f'step {step}: {name} ' + ', '.join(numbers))
        self._hooks.write(step, {key: math.nan if x is None else x for key, x in row.items()})
