"""The training loop: one visible order of what happens between two steps."""

import dataclasses
import enum
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gpt_jax.config import RunConfig
from gpt_jax.errors import UserError
from gpt_jax.evaluate import Evaluation
from gpt_jax.telemetry.progress import Progress
from gpt_jax.train.program import Program
from gpt_jax.train.state import TrainState


class Outcome(enum.Enum):
    """How `run` ended."""

    COMPLETE = 'complete'
    STOPPED = 'stopped'  # asked to; what was done is saved


def _nothing(*_: Any) -> None:
    """A hook that is not there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls, and nothing of how it is done."""

    evaluate: Callable[[TrainState], dict[str, Evaluation]]  # by prefix: 'eval', 'eval_ema'
    throughput: Callable[[float], dict[str, float]]  # tokens/s -> what else follows from it
    sample: Callable[[TrainState], str] | None = None  # a text to show
    save: Callable[[TrainState, int, float | None], None] = _nothing  # state, step, eval loss
    write: Callable[[int, dict[str, float]], None] = _nothing  # a row of metrics
    flush: Callable[[], None] = _nothing  # rows are on disk when it returns
    stop: Callable[[], bool] = lambda: False  # polled every step


def run(
    program: Program,
    config: RunConfig,
    *,
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    hooks: Hooks,
    progress: Progress,
    best_loss: float = math.inf,
) -> tuple[TrainState, Outcome]:
    """Trains from `state` to `config.train.num_steps`.

    Metrics of step t are read after step t+1 is dispatched, so that the device never waits for
    the host. Rows up to a step are on disk before its checkpoint is.

    Args:
      batches: the data from the state's step on.
      best_loss: the lowest evaluation loss of a saved checkpoint so far.

    Raises:
        UserError: too many non-finite steps in a row; the state is saved first.
    """
    num_steps = config.train.num_steps
    first = int(state.step)
    recorder = _Recorder(config, hooks, progress, first)
    for done in range(first + 1, num_steps + 1):
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        state, metrics = program.train_step(state, program.place(batch))
        recorder.read_previous()
        recorder.remember(done, metrics, waited)

        last, stopping = done == num_steps, hooks.stop()
        evaluating = last or _due(config.eval.every, done)
        sampling = hooks.sample is not None and (last or _due(config.sample.every, done))
        saving = last or stopping or _due(config.checkpoint.save_every, done)
        if evaluating or sampling or saving:
            recorder.read_previous()
        if recorder.bad_steps >= config.train.max_bad_steps:
            hooks.flush()
            hooks.save(state, done, None)
            raise UserError(
                f'{recorder.bad_steps} steps in a row up to step {done} had a loss or gradient '
                f'that is not finite; their updates were skipped and the state is saved: lower '
                f'config.optimizer.learning_rate or raise config.train.max_bad_steps'
            )
        eval_loss = None
        if evaluating:
            eval_loss = recorder.evaluation(done, hooks.evaluate(state))
            if config.checkpoint.keep_best and eval_loss < best_loss:
                best_loss, saving = eval_loss, True
        if sampling:
            progress.print(f'--- sample at step {done}\n{hooks.sample(state)}\n---')
        if saving:
            hooks.flush()
            hooks.save(state, done, eval_loss)
        if evaluating or sampling or saving:
            recorder.restart_clock()
        if stopping and not last:
            return state, Outcome.STOPPED
    return state, Outcome.COMPLETE


def _due(every: int, step: int) -> bool:
    """Whether `step` ends a period of `every` steps; 0 is never."""
    return every > 0 and step % every == 0


class _Recorder:
    """Turns a step's metrics into rows and into the progress line, one step late."""

    def __init__(self, config: RunConfig, hooks: Hooks, progress: Progress, first: int):
        self.bad_steps = 0
        self._config, self._hooks, self._progress = config, hooks, progress
        self._tokens_per_step = config.train.batch_size * config.model.max_seq_len
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._waited = 0.0  # seconds that steps waited for data since the last row
        self._clock = time.perf_counter()  # when the steps that make up a row began
        self._clock_step = first

    def remember(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
        self._pending = (step, metrics)
        self._waited += waited

    def restart_clock(self) -> None:
        """Leaves out of tokens/s what happened between two steps, such as an evaluation."""
        self._clock = time.perf_counter()

    def read_previous(self) -> None:
        """Reads the metrics that were remembered last, and writes a row when one is due."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.bad_steps = int(values['bad_steps'])
        fields = {'loss': values['loss']}
        if step % self._config.train.log_every == 0:
            now = time.perf_counter()
            steps = step - self._clock_step
            rate = steps * self._tokens_per_step / (now - self._clock)
            row = {f'train/{name}': value for name, value in values.items()}
            row['train/tokens'] = float(step * self._tokens_per_step)
            row['train/tokens_per_second'] = rate
            row['train/data_wait_seconds'] = self._waited / steps
            row |= {f'train/{key}': value for key, value in self._hooks.throughput(rate).items()}
            self._hooks.write(step, row)
            self._clock, self._clock_step, self._waited = now, step, 0.0
            fields['tok/s'] = rate
        self._progress.update(step, **fields)

    def evaluation(self, step: int, results: dict[str, Evaluation]) -> float:
        """Writes an evaluation's row and line; returns the loss that decides what is best."""
        row = {
            f'{prefix}/{name}': float(value)
            for prefix, result in results.items()
            for name, value in result.row().items()
        }
        self._hooks.write(step, row)
        parts = [
            f'{prefix} loss {result.loss:.4f} (perplexity {result.perplexity:.2f}, '
            f'{result.bits_per_byte:.4f} bits per byte)'
            for prefix, result in results.items()
        ]
        self._progress.print(f'step {step}: ' + ', '.join(parts))
        return results['eval'].loss
