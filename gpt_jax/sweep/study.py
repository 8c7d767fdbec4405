"""The study that processes share, and the choice of the trial that runs next."""

import contextlib
import pathlib

import optuna

from gpt_jax.errors import UserError
from gpt_jax.sweep import storage as storages
from gpt_jax.sweep.attempts import POINT, Attempts, State, group
from gpt_jax.sweep.definition import Sweep

TRIALS = 'trials'  # the folder of workdirs


class SharedStudy:
    """The study of a sweep, opened by this process."""

    def __init__(
        self,
        sweep: Sweep,
        *,
        folder: pathlib.Path,
        storage: str = '',
        heartbeat: int = storages.HEARTBEAT_SECONDS,
    ):
        """Opens or creates the study.

        Args:
          sweep: gives the name, the direction and the pruner.
          folder: holds the workdirs, and the SQLite file if no storage is given.
          storage: a database URL or the path of a journal file; '' for SQLite in `folder`.
          heartbeat: seconds between signs of life of a trial in a database.

        Raises:
            UserError: the storage cannot be opened, or its study is of another sweep.
        """
        self.sweep, self.folder = sweep, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.spec = storage or f'{storages.SQLITE}{folder}/sweep.db'
        with storages.explain_errors(self.spec):
            self._storage = storages.choose(self.spec, name=sweep.name, heartbeat=heartbeat)
            with self.locked():  # two processes must not both create the tables
                self.study = self._open()

    def _open(self) -> optuna.Study:
        sweep = self.sweep
        study = optuna.create_study(
            study_name=sweep.name,
            storage=self._storage.open(),
            direction=sweep.direction,
            pruner=sweep.pruner,
            load_if_exists=True,
        )
        trials = study.get_trials(deepcopy=False)
        where = f'the study {sweep.name!r} in {storages.without_password(self.spec)}'
        if not trials and any(self.folder.glob(f'{TRIALS}/*')):
            raise UserError(
                f'{self.folder / TRIALS} has trials, but {where} is new; give the --storage and '
                f'the name in the sweep file that they were made with, or move them away'
            )
        goal = (study.direction.name.lower(), *(study.metric_names or ()))
        new_goal = (sweep.direction, sweep.metric)
        has_values = any(trial.intermediate_values for trial in trials)
        if goal[0] != sweep.direction or (goal != new_goal and has_values):
            raise UserError(
                f'{where} is to {" ".join(goal)}, the sweep file to {" ".join(new_goal)}; change '
                f'it back, or give it another name and --folder'
            )
        study.set_metric_names([sweep.metric])
        return study

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the lock of the storage, which one process can have."""
        return self._storage.locked()

    def hold(self, trial: optuna.trial.Trial) -> contextlib.AbstractContextManager:
        """Marks a trial as run by this process; entered with the lock held."""
        return self._storage.hold(self.study, trial)

    def workdir(self, number: int) -> pathlib.Path:
        """Returns the workdir of the trial with an original number."""
        return self.folder / TRIALS / str(number)

    def attempts(self) -> list[Attempts]:
        """Returns the attempts at each trial, by original number."""
        return group(self.study.get_trials(deepcopy=False), retries=self.sweep.retries)

    def is_finished(self) -> bool:
        """Returns whether no trial is left to run or to try again."""
        return all(each.state.is_finished for each in self.attempts())

    def has_values(self) -> bool:
        """Returns whether a trial has reported a value."""
        return any(trial.intermediate_values for trial in self.study.get_trials(deepcopy=False))

    def next_trial(self, trials: int) -> optuna.trial.Trial | None:
        """Takes the trial to run next: a lost one, else a new one while there are not `trials`.

        Returns None if there is none now. Called with the lock held.
        """
        self._storage.fail_lost(self.study)
        for each in self.attempts():
            if each.state is State.INTERRUPTED:
                each.queue_again(self.study)
        all_attempts = self.attempts()
        if not any(each.state is State.WAITING for each in all_attempts):
            if len(all_attempts) >= trials:
                return None
            used = {each.last.user_attrs.get(POINT) for each in all_attempts}
            for index, point in enumerate(self.sweep.points()):
                if index not in used:
                    self.study.enqueue_trial(point, user_attrs={POINT: index})
                    break
        # A sampler of its own, so that processes draw different points.
        count = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.sweep.sampler(seed=(self.sweep.seed * 1_000_003 + count) % 2**32)
        return self.study.ask()
