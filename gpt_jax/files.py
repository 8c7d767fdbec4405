"""Reading and writing small files so that no reader ever sees half of one."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from gpt_jax import object_store
from gpt_jax.errors import UserError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, mode: str = 'wb') -> Iterator[IO]:
    """Opens a temporary neighbour of `path` that replaces it when the block ends without error.

    The bytes are on disk before the name changes, so a crash leaves the old file or the new
    one. When the block raises, the temporary file is removed and `path` is untouched. In an object
    store, where an object is written whole, the temporary file is a local one.

    Raises:
        UserError: the file cannot be written (full disk, no permission), naming it.
    """
    if object_store.is_remote(path):
        with object_store.whole_object(path, mode) as file:
            yield file
        return
    path = pathlib.Path(path)
    temporary = path.with_name(f'.{path.name}.tmp-{os.getpid()}')
    encoding = None if 'b' in mode else 'utf-8'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def swap(
    moves: Mapping[pathlib.Path, pathlib.Path],
    outdated: Sequence[pathlib.Path],
    *,
    aside: pathlib.Path,
) -> None:
    """Puts new files and folders in place of old ones of the same file system, all or none.

    Args:
      moves: from where a finished file or folder is to where it belongs.
      outdated: what goes besides the targets of `moves` that exist.
      aside: a folder to make for what goes, removed at the end.

    Raises:
        UserError: a file cannot be moved; everything is where it was.
    """
    done: list[tuple[pathlib.Path, pathlib.Path]] = []

    def move(source: pathlib.Path, target: pathlib.Path) -> None:
        done.append((source, target))
        source.rename(target)

    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        old = dict.fromkeys([*outdated, *(path for path in moves.values() if path.exists())])
        for number, path in enumerate(old):
            move(path, aside / str(number))
        for source, target in moves.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            move(source, target)
    except BaseException as error:
        for source, target in reversed(done):
            with contextlib.suppress(FileNotFoundError):  # the move that failed
                target.rename(source)
        if isinstance(error, OSError):
            raise cannot_write(aside.parent, error) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def system_errno(error: BaseException) -> int | None:
    """The operating system's number of a failure, also where tensorstore only writes it down."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def may_be_whole(error: BaseException) -> bool:
    """Whether a failure to read says nothing about the file: permissions, machine or network."""
    return isinstance(error, PermissionError) or system_errno(error) in {
        errno.EACCES,
        errno.EPERM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
    }


def cannot_read(path: str | os.PathLike, error: BaseException) -> UserError:
    """The error to show where `may_be_whole`."""
    return UserError(
        f'cannot read {path}: {_reason(error)}; nothing was changed: mend that, and try again'
    )


def cannot_write(path: str | os.PathLike, error: BaseException) -> UserError:
    """The error to show when writing `path` failed: the file, the reason and the fix."""
    return UserError(
        f'cannot write {path}: {_reason(error)}; free some space or choose another folder'
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = system_errno(error)
    return os.strerror(number) if number else str(error) or type(error).__name__


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8, all or nothing."""
    with atomic_file(path, 'w') as file:
        file.write(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with a final newline, all or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def read_text(path: str | os.PathLike) -> str:
    """The UTF-8 text of a file, line ends as they are.

    Raises:
        UserError: the file cannot be read or is not UTF-8.
    """
    try:
        return pathlib.Path(path).read_bytes().decode('utf-8')
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 at byte {error.start}; convert it') from error


def read_json(path: str | os.PathLike) -> Any:
    """The value stored in a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    path = path if object_store.is_remote(path) else pathlib.Path(path)
    try:
        return json.loads(object_store.read_bytes(path))
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not valid JSON ({error}); restore or delete it') from error


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
