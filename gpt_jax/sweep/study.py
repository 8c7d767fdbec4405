"""The study that processes share: its storage, its lock, and the trials that lost their process.

A trial that lost its process is queued again as a new trial with the same parameters. Both belong
to the number of the first, the original, which also names the workdir. In a storage that is a file,
a process holds a file lock for each trial that it runs, so a killed one is noticed at once. A
database server has heartbeats instead.
"""

import contextlib
import fcntl
import pathlib
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator

import optuna
import sqlalchemy
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from gpt_jax.errors import UserError
from gpt_jax.sweep.definition import Sweep

HEARTBEAT_SECONDS = 15  # of trials in a database; three missed ones make a trial lost
ERROR = 'error'  # user attribute of a trial whose run failed by itself; it is not tried again
POINT = 'point'  # user attribute of a trial of the grid: the index of its point

warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


class SharedStudy:
    """The study of a sweep, opened by this process."""

    def __init__(
        self,
        sweep: Sweep,
        *,
        name: str,
        folder: pathlib.Path,
        storage: str = '',
        heartbeat: int = HEARTBEAT_SECONDS,
    ):
        """Opens or creates the study.

        Args:
          sweep: gives the direction and the pruner.
          name: of the study in the storage.
          folder: holds the workdirs, and the SQLite file if no storage is given.
          storage: a database URL or the path of a journal file; '' for SQLite in `folder`.
          heartbeat: seconds between signs of life of a trial in a database.

        Raises:
            UserError: the storage is of another kind or cannot be opened.
        """
        self.sweep, self.folder = sweep, folder
        folder.mkdir(parents=True, exist_ok=True)
        storage = storage or f'sqlite:///{folder}/sweep.db'
        self._has_heartbeats = _is_server(storage)
        self._lock_number = zlib.crc32(name.encode())
        self._held: contextlib.ExitStack | None = None
        with _explain(storage):
            if self._has_heartbeats:
                self._engine = sqlalchemy.create_engine(storage, poolclass=sqlalchemy.pool.NullPool)
            else:  # beside the file, where every process with the same storage finds them
                self._locks = pathlib.Path(storage.removeprefix('sqlite:///') + '.locks') / name
                self._locks.mkdir(parents=True, exist_ok=True)
            with self.locked():  # two processes must not both create the tables
                self._open(storage, name, heartbeat)

    def _open(self, storage: str, name: str, heartbeat: int) -> None:
        self.study = optuna.create_study(
            study_name=name,
            storage=_open_storage(storage, heartbeat),
            direction=self.sweep.direction,
            pruner=self.sweep.pruner,
            load_if_exists=True,
        )
        self._enqueue_points()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the study, at the latest until the block ends; see `release`."""
        with contextlib.ExitStack() as self._held:
            if self._has_heartbeats:
                connection = self._held.enter_context(self._engine.connect())
                lock = sqlalchemy.text(f'select pg_advisory_lock({self._lock_number})')
                connection.execute(lock)
            else:
                self._held.enter_context(_file_lock(self._locks / 'study'))
            yield

    def release(self) -> None:
        """Releases the lock before the block of `locked` ends."""
        self._held.close()

    @contextlib.contextmanager
    def hold_trial(self, trial: optuna.trial.Trial) -> Iterator[None]:
        """Marks a trial as being run by this process; called with the lock of the study held."""
        with contextlib.ExitStack() as stack:
            if not self._has_heartbeats:
                stack.enter_context(_file_lock(self._locks / str(trial.number)))
            yield

    def attempts(self) -> dict[int, list[FrozenTrial]]:
        """Returns the trials by original number, in the order in which they were tried."""
        attempts: dict[int, list[FrozenTrial]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            attempts.setdefault(original_number(trial), []).append(trial)
        return attempts

    def requeue(self) -> None:
        """Queues lost and interrupted trials again; called with the lock of the study held.

        It first marks them as failed. If it is killed between the two, the next call queues them.
        """
        if self._has_heartbeats:
            optuna.storages.fail_stale_trials(self.study)
        else:
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if _is_free(self._locks / str(trial.number)):
                    self.study.tell(trial.number, state=TrialState.FAIL)
        retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
        for trials in self.attempts().values():
            last = trials[-1]
            if last.state is TrialState.FAIL and ERROR not in last.user_attrs:
                retry(self.study, last)

    def seed_sampler(self) -> None:
        """Makes the sampler of the next trial; processes draw different points by its number."""
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.sweep.sampler(seed=self.sweep.seed * 1_000_003 + number)

    def _enqueue_points(self) -> None:
        known = {trial.user_attrs.get(POINT) for trial in self.study.get_trials(deepcopy=False)}
        for index, point in enumerate(self.sweep.points()):
            if index not in known:
                self.study.enqueue_trial(point, user_attrs={POINT: index})


def original_number(trial: FrozenTrial) -> int:
    """Returns the number under which a trial was tried first."""
    number = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if number is None else number


def is_finished(trials: Iterable[FrozenTrial]) -> bool:
    """Returns whether the last attempt of a trial ended, by a result, pruning or an error."""
    *_, last = trials
    return last.state.is_finished() and (
        last.state is not TrialState.FAIL or ERROR in last.user_attrs
    )


def _is_server(spec: str) -> bool:
    """Returns whether a storage is a database server, not a file. Raises UserError for others."""
    if '://' not in spec or spec.startswith('sqlite:///'):
        return False
    if spec.startswith(('postgresql://', 'postgresql+')):
        return True
    raise UserError(
        f'--storage={spec}: give sqlite:///FILE, postgresql://… or the path of a journal file'
    )


def _open_storage(spec: str, heartbeat: int) -> optuna.storages.BaseStorage:
    if '://' not in spec:
        return JournalStorage(JournalFileBackend(spec))
    if not _is_server(spec):
        return RDBStorage(spec, engine_kwargs={'connect_args': {'timeout': 60}})
    return RDBStorage(
        spec,
        heartbeat_interval=heartbeat,
        grace_period=3 * heartbeat,
        engine_kwargs={'pool_pre_ping': True},
    )


@contextlib.contextmanager
def _explain(spec: str) -> Iterator[None]:
    """Turns the errors of opening a storage into a UserError that names it."""
    try:
        yield
    except (ImportError, OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        shown = re.sub(r':[^:@/]+@', ':***@', spec)  # a password
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'--storage={shown}: cannot open it: {reason}') from error


@contextlib.contextmanager
def _file_lock(path: pathlib.Path) -> Iterator[None]:
    """Waits for the lock of a file, and holds it; it ends with the process."""
    with open(path, 'a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_free(path: pathlib.Path) -> bool:
    """Returns whether no process holds the lock of a file."""
    with open(path, 'a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
