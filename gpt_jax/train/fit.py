"""A training loop for interactive Python that keeps the last step's state however it ends."""

import contextlib
import dataclasses
import signal
import threading
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax.evaluate import Evaluation
from gpt_jax.telemetry.progress import Progress
from gpt_jax.train import loop
from gpt_jax.train.memory import explain_out_of_memory
from gpt_jax.train.session import Session
from gpt_jax.train.state import TrainState
from gpt_jax.train.stop_signal import StopSignal


def fit(
    session: Session,
    *,
    params: Any,
    step: int,
    first_batch: int,
    keep: Callable[[TrainState], None],
    quiet: bool,
) -> Evaluation:
    """Trains to the session's last step with a new optimizer; returns the final evaluation.

    Args:
      session: the data and the program.
      params: the initial weights, which are copied; None: random weights.
      step: number of steps that these weights were trained for.
      first_batch: index of the first batch to read.
      keep: called with the state after the last finished step, also when an error ends the loop.
      quiet: show no progress.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed: raised after the current step, or at once if
            pressed twice.
    """
    results: dict[str, Evaluation] = {}
    last: list[TrainState] = []

    def evaluate(state: TrainState) -> dict[str, Evaluation]:
        results.update(session.evaluate(state))
        return results

    def remember(take_step: Callable) -> Callable:
        def take(*args: Any) -> Any:
            state, metrics = take_step(*args)
            last[:] = [state]
            return state, metrics

        return take

    program = dataclasses.replace(
        session.program,
        train_step=remember(session.program.train_step),
        train_steps=remember(session.program.train_steps),
    )
    num_steps = session.config.train.num_steps
    try:
        with (
            _stop_signal() as signals,
            Progress(
                num_steps, unit='steps', description='fit', start=step, quiet=quiet
            ) as progress,
            explain_out_of_memory(program, session.config),
        ):
            loop.run(
                program,
                session.config,
                state=_begin(session, params, step),
                batches=session.batches(first_batch),
                hooks=loop.Hooks(
                    evaluate=evaluate,
                    throughput=session.throughput,
                    stop=lambda: signals.received is not None,
                ),
                progress=progress,
            )
    finally:
        # An interrupted step may have donated the arrays of the state before it.
        if last and not any(leaf.is_deleted() for leaf in jax.tree.leaves(last[0])):
            keep(last[0])
    if signals.received is not None:
        signal.raise_signal(signals.received)
    return results['eval']


def _begin(session: Session, params: Any, step: int) -> TrainState:
    """Returns the weights with a new optimizer, at the given step, which dropout depends on."""
    if params is None:
        state = session.init()
    else:
        shardings = jax.tree.map(lambda x: x.sharding, session.program.abstract_params)
        state = session.begin(jax.tree.map(jax.numpy.copy, jax.device_put(params, shardings)))
    number = np.asarray(step, state.step.dtype)
    return state.replace(step=jax.device_put(number, state.step.sharding))


def _stop_signal() -> contextlib.AbstractContextManager[Any]:
    """Returns a StopSignal; outside the main thread, which alone gets signals, a placeholder."""
    if threading.current_thread() is threading.main_thread():
        return StopSignal('ending after this step')
    return contextlib.nullcontext(types.SimpleNamespace(received=None))
