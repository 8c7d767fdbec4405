"""The attempts at one trial: Optuna has a trial of its own for each.

The first attempt is the original: it names the workdir, in which later ones go on.
"""

import dataclasses
import enum
from collections.abc import Iterable, Sequence

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

POINT = 'point'  # user attribute of all attempts: the index of the point of the grid
STOPPED = 'stopped'  # user attribute: a signal, or an error in the sweep file, ended the attempt
REJECTED = 'rejected'  # user attribute: the run's config or data is wrong; another try is no use
REASON = 'reason'  # user attribute: why the attempt was pruned or failed


class State(enum.StrEnum):
    """The states of a trial."""

    WAITING = 'waiting'
    RUNNING = 'running'
    INTERRUPTED = 'interrupted'  # to be queued again
    COMPLETE = 'complete'
    PRUNED = 'pruned'
    FAILED = 'failed'

    @property
    def is_finished(self) -> bool:
        """True if the trial is not tried again."""
        return self in (State.COMPLETE, State.PRUNED, State.FAILED)


@dataclasses.dataclass(frozen=True)
class Attempts:
    """The attempts at the trial with the number `number`, in their order."""

    number: int
    tries: Sequence[FrozenTrial]
    retries: int

    @property
    def last(self) -> FrozenTrial:
        """The last attempt."""
        return self.tries[-1]

    @property
    def state(self) -> State:
        """The state of the trial."""
        if self.last.state is not TrialState.FAIL:
            return State(self.last.state.name.lower())
        if REJECTED in self.last.user_attrs or self._losses > self.retries:
            return State.FAILED
        return State.INTERRUPTED

    @property
    def _losses(self) -> int:
        """The number of crashes that did not get further than the last attempt."""
        reached = len(self.last.intermediate_values)
        return sum(
            each.state is TrialState.FAIL
            and STOPPED not in each.user_attrs
            and len(each.intermediate_values) == reached
            for each in self.tries
        )

    def queue_again(self, study: optuna.Study) -> None:
        """Queues another attempt, which knows the values that are reported."""
        attributes = {key: value for key, value in self.last.user_attrs.items() if key == POINT}
        again = optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=self.last.params,
            distributions=self.last.distributions,
            user_attrs=attributes,
            system_attrs=self.last.system_attrs,
            intermediate_values=self.last.intermediate_values,
        )
        again.number = self.last.number
        RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, again)


def original_number(trial: FrozenTrial) -> int:
    """Returns the number of the first attempt."""
    number = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if number is None else number


def group(trials: Iterable[FrozenTrial], *, retries: int) -> list[Attempts]:
    """Returns the attempts of each trial, by original number."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        found.setdefault(original_number(trial), []).append(trial)
    return [Attempts(number, tries, retries) for number, tries in sorted(found.items())]
