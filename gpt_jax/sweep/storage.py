"""The storages that processes share: a file with locks, or a database server with heartbeats.

Both have a lock of the whole storage, mark a trial as held by this process, and find trials whose
process is gone. A file lock ends with its process, so a lost trial is noticed at once; on a server
it is noticed after three missed heartbeats.
"""

import contextlib
import fcntl
import pathlib
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import Protocol

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from gpt_jax.errors import UserError

HEARTBEAT_SECONDS = 15
SQLITE = 'sqlite:///'
LOCK_NUMBER = zlib.crc32(b'gpt_jax.sweep')  # of the advisory lock in PostgreSQL
GRACE = 3  # missed heartbeats after which a trial is lost
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)

warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings('ignore', message='Heartbeat of storage')  # `ServerStorage.hold` sends them
optuna.logging.set_verbosity(optuna.logging.ERROR)


class SharedStorage(Protocol):
    """The storage of a study, as several processes use it."""

    def open(self) -> BaseStorage:
        """Opens Optuna's storage."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the lock of the storage, which one process can have."""

    def hold(self, study: optuna.Study, trial: optuna.Trial) -> contextlib.AbstractContextManager:
        """Marks a trial as run by this process; entered with the lock held."""

    def fail_lost(self, study: optuna.Study) -> None:
        """Marks trials as failed that no process holds any more; called with the lock held."""


class FileStorage:
    """A SQLite file or a journal file; locks of files lie beside it."""

    def __init__(self, spec: str, name: str):
        """Takes a URL of SQLite or the path of a journal file, and the name of the study."""
        self._spec = spec
        locks = pathlib.Path(spec.removeprefix(SQLITE) + '.locks')
        self._lock, self._locks = locks / 'storage', locks / 'trials' / name

    def open(self) -> BaseStorage:
        if self._spec.startswith(SQLITE):
            return RDBStorage(self._spec, engine_kwargs={'connect_args': {'timeout': 60}})
        if not _may_be_journal(pathlib.Path(self._spec)):
            raise UserError(f'--storage={self._spec} is no journal of Optuna; give another path')
        return JournalStorage(JournalFileBackend(self._spec))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        self._locks.mkdir(parents=True, exist_ok=True)
        with _file_lock(self._lock):
            yield

    def hold(self, study: optuna.Study, trial: optuna.Trial) -> contextlib.AbstractContextManager:
        return _file_lock(self._locks / str(trial.number))

    def fail_lost(self, study: optuna.Study) -> None:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not _is_free(self._locks / str(trial.number)):
                continue
            # Its process may have ended it meanwhile, before it let go of the lock.
            if study.get_trials(deepcopy=False)[trial.number].state is TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)


class ServerStorage:
    """A database of PostgreSQL."""

    def __init__(self, spec: str, heartbeat: int):
        """Takes a URL and the seconds between heartbeats.

        Raises:
            UserError: the driver is not installed.
        """
        # The driver that is installed with Optuna; SQLAlchemy's default depends on its version.
        self._spec = spec.replace('postgresql://', 'postgresql+psycopg://')
        self._heartbeat = heartbeat
        try:
            self._engine = sqlalchemy.create_engine(self._spec, poolclass=sqlalchemy.pool.NullPool)
        except ModuleNotFoundError as error:
            raise UserError(f"{error}; pip install -e '.[sweep]', which has psycopg") from error

    def open(self) -> BaseStorage:
        return RDBStorage(
            self._spec,
            heartbeat_interval=self._heartbeat,
            grace_period=GRACE * self._heartbeat,
            engine_kwargs={'pool_pre_ping': True},
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._engine.connect() as connection:
            connection.execute(sqlalchemy.text(f'select pg_advisory_lock({LOCK_NUMBER})'))
            yield

    @contextlib.contextmanager
    def hold(self, study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
        storage, ended = study._storage, threading.Event()  # the one that `open` returned

        def beat() -> None:
            while not ended.wait(self._heartbeat):
                # The next beat may come through again, and otherwise the trial is lost.
                with contextlib.suppress(*STORAGE_ERRORS):
                    storage.record_heartbeat(trial._trial_id)

        storage.record_heartbeat(trial._trial_id)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def fail_lost(self, study: optuna.Study) -> None:
        optuna.storages.fail_stale_trials(study)


def choose(spec: str, *, name: str, heartbeat: int) -> SharedStorage:
    """Returns the storage of --storage.

    Raises:
        UserError: it is of another kind, or its driver is not installed.
    """
    if spec.startswith(SQLITE) or '://' not in spec:
        return FileStorage(spec, name)
    if spec.startswith(('postgresql://', 'postgresql+')):
        return ServerStorage(spec, heartbeat)
    raise UserError(
        f'--storage={without_password(spec)}: give sqlite:///FILE, postgresql://… or the path of '
        f'a journal file'
    )


@contextlib.contextmanager
def explain_errors(spec: str) -> Iterator[None]:
    """Turns errors of a storage into a UserError that names it."""
    try:
        yield
    except STORAGE_ERRORS as error:
        reason = ' '.join(str(error.__cause__ or error).split())[:200]
        raise UserError(f'--storage={without_password(spec)}: {reason}') from error


def without_password(spec: str) -> str:
    """Returns a URL with its password hidden."""
    return re.sub(r'(://[^:@/]*):[^@/]+@', r'\1:***@', spec)


def _may_be_journal(path: pathlib.Path) -> bool:
    """Returns whether a file is new, or begins as a journal: with an operation in JSON."""
    if not path.exists():
        return True
    with open(path, 'rb') as file:
        return file.read(1) in (b'', b'{')


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
