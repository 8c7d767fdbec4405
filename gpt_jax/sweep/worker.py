"""Runs the trials of a study as the command line would, one after another or together."""

import contextlib
import dataclasses
import math
import platform
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from gpt_jax import main
from gpt_jax.errors import Diverged, UserError
from gpt_jax.modes import members
from gpt_jax.modes.command import Command
from gpt_jax.modes.train import INTERRUPTED, UNFINISHED
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


def run_trials(
    shared: SharedStudy, *, trials: int, report: Callable[[], None], most_members: int = 1
) -> None:
    """Runs trials until the study has `trials` that are finished.

    If only other processes have some left, it waits: it takes over what they lose. `report` is
    called after each trial, or each group of up to `most_members` that differ in numbers only and
    train together.

    Raises:
        UserError: the sweep file, the metric or the first run is wrong.
        Stopped: a signal ended a trial.
    """
    while True:
        with contextlib.ExitStack() as held:
            taken = []
            with shared.locked():
                while len(taken) < most_members and (trial := shared.next_trial(trials)):
                    held.enter_context(shared.hold(trial))
                    taken.append(trial)
            if taken:
                _run([_Attempt(shared, trial) for trial in taken])
        if taken:
            report()
        elif shared.is_finished():
            return
        else:
            time.sleep(POLL_SECONDS)


def _run(attempts: Sequence['_Attempt']) -> None:
    """Runs the attempts at several trials, and tells the study how each ended."""
    try:
        ready = [each for each in attempts if each.prepare()]
        for indices in members.group([each.command for each in ready], most=len(ready)):
            group = [ready[index] for index in indices]
            ends = members.train_group([each.command for each in group])
            for attempt, end in zip(group, ends, strict=True):
                attempt.tell(end)
            for status in ends:
                if isinstance(status, int) and status:
                    raise Stopped(status)
    except BaseException:
        for attempt in attempts:
            attempt.tell_stopped()
        raise


class _Attempt:
    """An attempt at a trial by this process, until the study knows how it ended."""

    command: Command  # set by `prepare`

    def __init__(self, shared: SharedStudy, trial: optuna.trial.Trial):
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._shared, self._trial = shared, trial
        self._number = original_number(frozen)
        self._reported = set(frozen.intermediate_values)
        self._is_told = False

    def prepare(self) -> bool:
        """Asks the sweep file for the run; returns False if it leaves the trial out.

        Raises:
            UserError: the sweep file is wrong.
        """
        try:
            command = _read_command(self._shared, self._trial, self._number)
        except optuna.TrialPruned as pruned:
            self.tell(pruned)
            return False
        self.command = dataclasses.replace(command, watch=self._watch)
        return True

    def _watch(self, step: int, row: Mapping[str, float]) -> None:
        """Reports the metric of a row to the study.

        Raises:
            optuna.TrialPruned: the run ends here.
        """
        metric, trial = self._shared.sweep.metric, self._trial
        if metric not in row:
            return
        value = row[metric]
        if not math.isfinite(value):
            raise optuna.TrialPruned(f'{metric} is {value} at step {step}')
        if step not in self._reported:
            self._reported.add(step)
            trial.report(value, step)
        if step < self.command.config.train.num_steps and trial.should_prune():
            raise optuna.TrialPruned(f'{metric} {value:.4f} at step {step}')

    def tell(self, end: members.End | optuna.TrialPruned) -> None:
        """Tells the study how the run ended, unless another process took the trial over.

        Raises:
            UserError: the run has no such metric.
            Exception: the error that ended the run, if no run has reported a value: most likely
                all would end so.
        """
        try:
            self._tell(end)
        except UpdateFinishedTrialError:
            print('another process has taken this trial over, as no heartbeat came', flush=True)
            self._is_told = True

    def _tell(self, end: members.End | optuna.TrialPruned) -> None:
        if end == 0:
            try:
                self._end(TrialState.COMPLETE, value=_last_value(self._shared, self._number))
                return
            except optuna.TrialPruned as pruned:
                end = pruned
        if isinstance(end, int):
            self._end(TrialState.FAIL, **{STOPPED: True})
        elif isinstance(end, UpdateFinishedTrialError):
            raise end
        elif isinstance(end, optuna.TrialPruned | Diverged):
            print(f'pruned: {end}', flush=True)
            self._end(TrialState.PRUNED, **{REASON: str(end)})
        else:
            self._fail(end)

    def _fail(self, error: Exception) -> None:
        line = ' '.join(str(error).split()) or type(error).__name__
        if not self._shared.has_values():
            self._end(TrialState.FAIL, **{STOPPED: True, REASON: line})
            raise error
        print(f'failed: {line}', flush=True)
        if isinstance(error, UserError):
            self._end(TrialState.FAIL, **{REJECTED: True, REASON: line})
        else:
            traceback.print_exception(error)
            self._end(TrialState.FAIL, **{REASON: line})

    def tell_stopped(self) -> None:
        """Tells the study, if it knows no end yet, that the attempt stopped for another reason."""
        if not self._is_told:
            self.tell(UNFINISHED)

    def _end(
        self, state: TrialState, *, value: float | None = None, **attributes: str | bool
    ) -> None:
        for key, text in attributes.items():
            self._trial.set_user_attr(key, text)
        self._shared.study.tell(self._trial, value, state=state, skip_if_finished=True)
        self._is_told = True


def _read_command(shared: SharedStudy, trial: optuna.trial.Trial, number: int) -> Command:
    """Returns the command of a trial, and prints its command line.

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
        _, command = main.read_command(arguments)
    except UserError as error:
        raise UserError(f'trial {number}: {error}') from error
    return command


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
