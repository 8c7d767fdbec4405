"""Runs the trials of a study, one after another, as the command line would."""

import dataclasses
import json
import math
import pathlib
import shlex
import time
import traceback
from collections.abc import Callable, Mapping

import optuna
from optuna.trial import TrialState

from gpt_jax import main
from gpt_jax.errors import UserError
from gpt_jax.modes.train import INTERRUPTED
from gpt_jax.sweep.definition import Sweep, to_arguments
from gpt_jax.sweep.study import ERROR, SharedStudy, original_number

POLL_SECONDS = 1.0
COMMAND = 'command'  # user attribute: the command line of the trial


class Stopped(KeyboardInterrupt):
    """A stop signal ended the training of a trial, which is saved."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def run_trials(shared: SharedStudy, *, trials: int, report: Callable[[], None]) -> int:
    """Runs trials until the study has `trials` that are finished; returns the exit status.

    If only other processes have some left, it waits: it takes over what they lose. `report` is
    called after each trial.
    """
    while True:
        with shared.locked():
            shared.requeue()
            attempts = shared.attempts()
            states = [tries[-1].state for tries in attempts.values()]
            if TrialState.WAITING in states or len(attempts) < trials:
                shared.seed_sampler()
                status = _run_next(shared)
                if status:
                    return status
                report()
                continue
        if TrialState.RUNNING not in states:
            return 0
        time.sleep(POLL_SECONDS)


def _run_next(shared: SharedStudy) -> int:
    """Runs one trial in Optuna's loop, which sends the heartbeats; returns the exit status."""

    def objective(trial: optuna.trial.Trial) -> float:
        with shared.hold_trial(trial):
            shared.release()
            try:
                return run_trial(shared.sweep, trial, shared.folder)
            except optuna.TrialPruned:
                raise
            except Exception as error:
                line = ' '.join(str(error).split()) or type(error).__name__
                trial.set_user_attr(ERROR, line)
                print(f'trial failed: {line}', flush=True)
                if not isinstance(error, UserError):
                    traceback.print_exc()
                raise

    try:
        shared.study.optimize(objective, n_trials=1, catch=(Exception,))
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def run_trial(sweep: Sweep, trial: optuna.trial.Trial, folder: pathlib.Path) -> float:
    """Trains a trial in its workdir, from its last checkpoint on; returns its metric.

    Raises:
        optuna.TrialPruned: the pruner ends it.
        Stopped: a signal ended it.
        UserError: the run was rejected or failed, or has no such metric.
    """
    chosen = sweep.suggest(trial)
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    number = original_number(frozen)
    workdir = folder / 'trials' / str(number)
    arguments = to_arguments(sweep, chosen, workdir)
    line = shlex.join(['python', '-m', 'gpt_jax.main', *arguments])
    trial.set_user_attr(COMMAND, line)
    print(f'trial {number}: {line}', flush=True)
    mode, command = main.read_command(arguments)
    last = command.config.train.num_steps
    reported = set(frozen.intermediate_values)

    def watch(step: int, row: Mapping[str, float]) -> None:
        value = row.get(sweep.metric)
        if value is None or not math.isfinite(value):
            return
        if step not in reported:
            reported.add(step)
            trial.report(value, step)
        if step < last and trial.should_prune():
            raise optuna.TrialPruned(f'{sweep.metric} {value:.4f} at step {step}')

    status = mode.run(dataclasses.replace(command, watch=watch))
    if status:
        raise Stopped(status)
    return read_metric(workdir, sweep.metric)


def read_metric(workdir: pathlib.Path, metric: str) -> float:
    """Returns the last value of a metric in a workdir.

    Raises:
        UserError: there is none.
    """
    path, values = workdir / 'metrics.jsonl', []
    if path.is_file():
        rows = map(json.loads, path.read_text(encoding='utf-8').splitlines())
        values = [row[metric] for row in rows if row.get(metric) is not None]
    if not values:
        raise UserError(
            f'{path} has no {metric!r}; let config.train.sinks name jsonl, and the sweep a metric '
            f'of the run such as eval/loss'
        )
    return values[-1]
