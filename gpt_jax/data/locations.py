"""Folders of prepared shards and downloads, their lock, and hashes of large files."""

import contextlib
import fcntl
import logging
import os
import pathlib
from collections.abc import Iterator

from gpt_jax import files, object_store
from gpt_jax.data.config import DataConfig
from gpt_jax.errors import UserError

_HASHES = 'content_hashes.json'
REMEMBERED_BYTES = 2**26  # files >= 64 MiB are hashed again only if their size or date changes

_log = logging.getLogger(__name__)


def cache_folder(config: DataConfig) -> pathlib.Path:
    """Returns `config.cache_dir`, or by default gpt_jax/data in the user's cache folder.

    Raises:
        UserError: it is in an object store.
    """
    if object_store.is_remote(config.cache_dir):
        raise UserError(
            f'config.data.cache_dir={config.cache_dir} must be on a disk; shards are put into an '
            f'object store by --mode prepare --publish'
        )
    if config.cache_dir:
        return pathlib.Path(config.cache_dir).expanduser()
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(base) / 'gpt_jax' / 'data'


def downloads(config: DataConfig) -> pathlib.Path:
    """Returns the folder of downloaded files."""
    return cache_folder(config) / 'downloads'


def content_hash(path: pathlib.Path, config: DataConfig) -> str:
    """Returns the SHA-256 of a file; that of a large file is cached by its size and date.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        status = path.stat()
        if status.st_size < REMEMBERED_BYTES:
            return files.sha256_of(path)
        memory = cache_folder(config) / _HASHES
        known = files.read_json(memory) if memory.is_file() else {}
        key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        if known.get(key, [])[:2] != stamp:
            known[key] = [*stamp, files.sha256_of(path)]
            files.write_json(memory, known)
        return known[key][2]
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from error


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder against other processes; waits while another process holds the lock.

    Raises:
        UserError: the lock file cannot be written.
    """
    path = folder.with_name(f'.{folder.name}.lock')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise files.cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning('waiting for another process that prepares %s', folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # releases the lock, as does the end of the process
