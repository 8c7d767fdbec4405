"""Runs the trials of a study, one after another, as the command line would."""

import contextlib
import dataclasses
import math
import platform
import shlex
import time
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from gpt_jax import main
from gpt_jax.errors import Diverged, UserError
from gpt_jax.modes.command import Command
from gpt_jax.modes.train import INTERRUPTED
from gpt_jax.sweep.attempts import REASON, REJECTED, STOPPED, original_number
from gpt_jax.sweep.definition import Trial, to_arguments
from gpt_jax.sweep.study import SharedStudy
from gpt_jax.telemetry.metrics import read_rows

POLL_SECONDS = 1.0
COMMAND, MACHINE = 'command', 'machine'  # user attributes: the command line, and the host


class Stopped(KeyboardInterrupt):
    """A stop signal ended the training of a trial, which is saved."""

    def __init__(self, status: int = INTERRUPTED):
        super().__init__(status)
        self.status = status


class RunError(Exception):
    """The run of a trial ended with an error, the cause of this one."""


def run_trials(shared: SharedStudy, *, trials: int, report: Callable[[], None]) -> None:
    """Runs trials until the study has `trials` that are finished.

    If only other processes have some left, it waits: it takes over what they lose. `report` is
    called after each trial.

    Raises:
        UserError: the sweep file, the metric or the first run is wrong.
        Stopped: a signal ended a trial.
    """
    while True:
        with contextlib.ExitStack() as held:
            with shared.locked():
                trial = shared.next_trial(trials)
                if trial is not None:
                    held.enter_context(shared.hold(trial))
            if trial is not None:
                _run(shared, trial)
        if trial is not None:
            report()
        elif shared.is_running():
            time.sleep(POLL_SECONDS)
        else:
            return


def _run(shared: SharedStudy, trial: optuna.trial.Trial) -> None:
    """Runs a trial, and tells the study how it ended, unless another process took it over."""
    try:
        _run_and_tell(shared, trial)
    except UpdateFinishedTrialError:
        print('another process has taken this trial over, as no heartbeat came', flush=True)


def _run_and_tell(shared: SharedStudy, trial: optuna.trial.Trial) -> None:
    def end(state: TrialState, **attributes: str | bool) -> None:
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        shared.study.tell(trial, state=state, skip_if_finished=True)

    try:
        shared.study.tell(trial, run_trial(shared, trial), skip_if_finished=True)
    except optuna.TrialPruned as pruned:
        print(f'pruned: {pruned}', flush=True)
        end(TrialState.PRUNED, **{REASON: str(pruned)})
    except RunError as failed:
        line = ' '.join(str(failed.__cause__).split()) or type(failed.__cause__).__name__
        if not shared.has_values():  # most likely all trials would fail
            end(TrialState.FAIL, **{STOPPED: True, REASON: line})
            raise failed.__cause__ from None
        print(f'failed: {line}', flush=True)
        if isinstance(failed.__cause__, UserError):
            end(TrialState.FAIL, **{REJECTED: True, REASON: line})
        else:
            traceback.print_exception(failed.__cause__)
            end(TrialState.FAIL, **{REASON: line})
    except (UserError, KeyboardInterrupt):
        end(TrialState.FAIL, **{STOPPED: True})
        raise


def run_trial(shared: SharedStudy, trial: optuna.trial.Trial) -> float:
    """Trains a trial in its workdir, from its last checkpoint on; returns its metric.

    Raises:
        optuna.TrialPruned: the pruner ends it, or it diverged.
        Stopped: a signal ended it.
        RunError: the run was rejected or failed.
        UserError: the sweep file is wrong.
    """
    metric = shared.sweep.metric
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    number = original_number(frozen)
    mode, command = _read_command(shared, trial, number)
    last = command.config.train.num_steps
    reported = set(frozen.intermediate_values)

    def watch(step: int, row: Mapping[str, float]) -> None:
        if metric not in row:
            return
        value = row[metric]
        if not math.isfinite(value):
            raise optuna.TrialPruned(f'{metric} is {value} at step {step}')
        if step not in reported:
            reported.add(step)
            trial.report(value, step)
        if step < last and trial.should_prune():
            raise optuna.TrialPruned(f'{metric} {value:.4f} at step {step}')

    try:
        status = mode.run(dataclasses.replace(command, watch=watch))
    except Diverged as error:
        raise optuna.TrialPruned(str(error)) from error
    except (optuna.TrialPruned, UpdateFinishedTrialError):
        raise
    except Exception as error:
        raise RunError from error
    if status:
        raise Stopped(status)
    return _last_value(shared, number)


def _read_command(
    shared: SharedStudy, trial: optuna.trial.Trial, number: int
) -> tuple[ModuleType, Command]:
    """Returns the mode and the command of a trial, and prints its command line.

    Raises:
        UserError: the sweep file is wrong.
    """
    try:
        chosen = shared.sweep.suggest(trial)
        if not isinstance(chosen, Trial):
            raise TypeError(f'it returned {chosen!r:.60}, not a gpt_jax.sweep.definition.Trial')
    except (optuna.TrialPruned, UserError):
        raise
    except Exception as error:
        raise UserError(f'suggest, in trial {number}: {type(error).__name__}: {error}') from error
    arguments = to_arguments(shared.sweep, chosen, shared.workdir(number))
    line = shlex.join(['python', '-m', 'gpt_jax.main', *arguments])
    trial.set_user_attr(COMMAND, line)
    trial.set_user_attr(MACHINE, platform.node())
    print(f'trial {number}: {line}', flush=True)
    try:
        return main.read_command(arguments)
    except UserError as error:
        raise UserError(f'trial {number}: {error}') from error


def _last_value(shared: SharedStudy, number: int) -> float:
    """Returns the last value of the metric in the workdir of a trial.

    Raises:
        optuna.TrialPruned: it is not finite.
        UserError: there is none.
    """
    metric, workdir = shared.sweep.metric, shared.workdir(number)
    rows = read_rows(workdir) if (workdir / 'metrics.jsonl').is_file() else []
    values = [row[metric] for row in rows if metric in row]
    if not values:
        raise UserError(
            f'{workdir}/metrics.jsonl has no {metric!r}; let sweep.metric name one of its columns, '
            f"such as eval/loss, and config.train.sinks name 'jsonl'"
        )
    if values[-1] is None:
        raise optuna.TrialPruned(f'{metric} is not finite at the end')
    return values[-1]
