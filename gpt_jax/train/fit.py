"""Training from Python's prompt: whatever ends it, the state after the last step is kept."""

import contextlib
import signal
import threading
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax.evaluate import Evaluation
from gpt_jax.telemetry.progress import Progress
from gpt_jax.train.evaluators import Evaluator, Report
from gpt_jax.train.memory import explain_out_of_memory
from gpt_jax.train.run_folder import Nowhere
from gpt_jax.train.state import TrainState
from gpt_jax.train.stop_signal import StopSignal
from gpt_jax.train.trainer import Trainer
from gpt_jax.train.training_clock import TrainingClock
from gpt_jax.train.watchdog import Watchdog


def fit(
    trainer: Trainer,
    *,
    params: Any,
    step: int,
    first_batch: int,
    keep: Callable[[TrainState], None],
    quiet: bool,
) -> Evaluation:
    """Trains to the config's last step with a new optimizer; returns the final evaluation.

    Args:
      trainer: its data and its program; its evaluators are replaced by the validation loss.
      params: the initial weights, copied; None: random ones.
      step: number of steps that these weights have taken.
      first_batch: position in the data at which to start.
      keep: takes the state after the last step that finished, also if an error ends the loop.
      quiet: show no progress.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, after the step under way; pressed twice, at once.
    """
    results: dict[str, Evaluation] = {}

    def evaluate(trainer: Trainer, state: TrainState) -> Report:
        results.update(trainer.evaluate(state))
        return Report(lines=[f'eval loss {results["eval"].describe()}'])

    trainer.evaluators = [Evaluator(name='loss', every=0, run=evaluate)]
    _begin(trainer, params, step)
    num_steps = trainer.config.train.num_steps
    try:
        with (
            _stop_signal() as signals,
            Progress(
                num_steps, unit='steps', description='fit', start=step, quiet=quiet
            ) as progress,
            explain_out_of_memory(trainer.program, trainer.config),
        ):
            trainer.train(
                first_batch=first_batch,
                clock=TrainingClock(),
                progress=progress,
                folder=Nowhere(),
                watchdog=Watchdog(0),
                stop=lambda: signals.received is not None,
            )
    finally:
        # A step that was interrupted may have taken the arrays of the one before.
        deleted = any(leaf.is_deleted() for leaf in jax.tree.leaves(trainer.state))
        if not deleted and int(trainer.state.step) > step:
            keep(trainer.state)
    if signals.received is not None:
        signal.raise_signal(signals.received)
        raise KeyboardInterrupt  # the caller's handler of the signal has returned
    return results['eval']


def _begin(trainer: Trainer, params: Any, step: int) -> None:
    """Makes a state of the weights with a new optimizer, at a step that decides the dropout."""
    if params is None:
        trainer.init()
    else:
        shardings = jax.tree.map(lambda x: x.sharding, trainer.program.abstract_params)
        trainer.begin(jax.tree.map(jax.numpy.copy, jax.device_put(params, shardings)))
    number = np.asarray(step, trainer.state.step.dtype)
    device_step = jax.device_put(number, trainer.state.step.sharding)
    trainer.state = trainer.state.replace(step=device_step)


def _stop_signal() -> contextlib.AbstractContextManager[Any]:
    """Returns a StopSignal in the main thread, which alone hears signals, else one that waits."""
    if threading.current_thread() is threading.main_thread():
        return StopSignal('ending after this step')
    return contextlib.nullcontext(types.SimpleNamespace(received=None))
