"""Reading and writing small files, so that no reader ever sees a half-written one.

All text from users, from any source, is decoded by `TextDecoder`.
"""

import codecs
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

_MOVES = 'moves.json'  # of `swap`: the old paths, in the order of their numbers, and the new paths
# First bytes of files that are often mistaken for text. Two kinds may be UTF-8 throughout.
NEVER_TEXT = _PDF, _ZIP = b'%PDF-', b'PK\x03\x04'
_NOT_TEXT = {
    _PDF: 'a PDF',
    _ZIP: 'a zip archive (as .docx, .odt and .epub are)',
    b'\x1f\x8b': 'compressed by gzip (its name does not end in .gz)',
    b'\x28\xb5\x2f\xfd': 'compressed by zstd (its name does not end in .zst)',
    b'\xfd7zXZ': 'compressed by xz',
    b'BZh': 'compressed by bzip2',
    b'\x89PNG': 'a PNG image',
    b'\xff\xd8\xff': 'a JPEG image',
    b'PAR1': 'a parquet file (config.data.corpus=parquet)',
    b'\xd0\xcf\x11\xe0': 'an old Office document',
}
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEAD_BYTES = 16  # enough to recognise a kind of file


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, mode: str = 'wb') -> Iterator[IO]:
    """Opens a temporary file next to `path` that replaces it if the block ends without error.

    The bytes are on disk before the name changes, so a crash leaves either the old file or the new
    one. If the block raises, the temporary file is removed and `path` is unchanged. For an object
    store, where an object is written whole, the temporary file is local.

    Raises:
        UserError: the file cannot be written (full disk, no permission); names it.
    """
    if object_store.is_remote(path):
        with object_store.whole_object(path, mode) as file:
            yield file
        return
    path = pathlib.Path(path)
    temporary = _temporary(path)
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


def check_writable(path: str | os.PathLike, *, key: str) -> None:
    """Creates the folder of a file, and checks that `atomic_file` can write the file.

    It is for checks before the work whose result the file gets.

    Raises:
        UserError: it cannot (no permission, the path of a folder, no such bucket); names it.
    """
    if object_store.is_remote(path):
        object_store.check_reachable(object_store.to_path(path, key=key), key=key)
        return
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f'{key}={path} is a folder; name a file')
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f'.{path.name}.tmp-{os.getpid()}')


def swap(
    moves: Mapping[pathlib.Path, pathlib.Path],
    outdated: Sequence[pathlib.Path],
    *,
    aside: pathlib.Path,
) -> None:
    """Replaces files and folders by new ones on the same file system, all or none.

    The moves are recorded before the first one, so that `undo_swap` can restore the old files
    after the process was killed.

    Args:
      moves: path of a finished file or folder -> its final path.
      outdated: paths to remove, in addition to existing targets of `moves`.
      aside: a folder to create for the old files; removed at the end.

    Raises:
        UserError: a file cannot be moved; the old files are back in place.
    """
    undo_swap(aside)
    old = dict.fromkeys([*outdated, *(path for path in moves.values() if path.exists())])
    try:
        aside.mkdir()
        root = aside.parent
        paths = [[str(path.relative_to(root)) for path in each] for each in (old, moves.values())]
        write_json(aside / _MOVES, paths)
        for number, path in enumerate(old):
            path.rename(aside / str(number))
        for source, target in moves.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    except BaseException as error:
        undo_swap(aside)
        if isinstance(error, OSError):
            raise cannot_write(aside.parent, error) from error
        raise
    (aside / _MOVES).unlink()  # from here on the swap is final
    shutil.rmtree(aside, ignore_errors=True)


def has_unfinished_swap(aside: pathlib.Path) -> bool:
    """Returns whether a process died in the middle of a `swap`."""
    return (aside / _MOVES).exists()


def undo_swap(aside: pathlib.Path) -> None:
    """Restores the files that an unfinished `swap` moved to `aside`, and removes that folder."""
    if has_unfinished_swap(aside):
        old, new = read_json(aside / _MOVES)
        kept = [aside / str(number) for number in range(len(old))]
        if all(path.exists() for path in kept):  # otherwise no new file has been moved
            for path in (aside.parent / name for name in new):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        for path, name in zip(kept, old, strict=True):
            if path.exists():
                target = aside.parent / name
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        (aside / _MOVES).unlink()
    shutil.rmtree(aside, ignore_errors=True)


def system_errno(error: BaseException) -> int | None:
    """Returns the errno of a failure, also from the text of a tensorstore error, or None."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def is_access_error(error: BaseException) -> bool:
    """Returns whether a failed read leaves the file possibly intact: permissions, network etc."""
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
    """Returns the error to show if `is_access_error(error)`."""
    return UserError(
        f'cannot read {path}: {_reason(error)}; nothing was changed; correct the cause and '
        f'try again'
    )


def cannot_write(path: str | os.PathLike, error: BaseException) -> UserError:
    """Returns the error to show if writing `path` failed: the file, the reason and the fix."""
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


class TextDecoder:
    """An incremental decoder of a UTF-8 file or stream.

    A byte-order mark at the start is dropped. Everything else is kept, line ends included.
    """

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder('utf-8')()
        self._head = b''
        self._num_bytes = 0
        self._begun = False

    def decode(self, chunk: bytes, *, name: str | os.PathLike, final: bool = False) -> str:
        """Returns the text of the next chunk. Characters may span chunks, except the `final` one.

        After an error, decoding can go on with the next chunk.

        Raises:
            UserError: the bytes are not UTF-8, or those of a PDF or a zip archive. It names what
                is read, `name`, and the first bad byte, counted from the start of the file.
        """
        self._head = (self._head + chunk[:_HEAD_BYTES])[:_HEAD_BYTES]
        self._num_bytes += len(chunk)
        if self._head.startswith(NEVER_TEXT):
            raise _not_utf8(name, 0, head=self._head)
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            self._decoder.reset()
            self._begun = True
            offset = self._num_bytes - len(error.object) + error.start
            raise _not_utf8(name, offset, head=self._head) from error
        if text and not self._begun:
            self._begun, text = True, text.removeprefix('\ufeff')
        return text


def decode(data: bytes, *, name: str | os.PathLike) -> str:
    """Returns the text of a whole file. Raises UserError as `TextDecoder.decode`."""
    return TextDecoder().decode(data, name=name, final=True)


def _not_utf8(name: str | os.PathLike, offset: int, *, head: bytes) -> UserError:
    for mark, kind in _NOT_TEXT.items():
        if head.startswith(mark):
            return UserError(f'{name} is {kind} and not text; give the text that is in it')
    encoding = 'UTF-16' if head.startswith(UTF16_MARKS) else 'LATIN1'
    return UserError(
        f'{name} is not UTF-8 at byte {offset}; convert it, for example with '
        f'iconv -f {encoding} -t UTF-8'
    )


def read_text(path: str | os.PathLike) -> str:
    """Returns the text of a file or an object, as `TextDecoder` decodes it.

    Raises:
        UserError: the file cannot be read or is not UTF-8.
    """
    path = path if object_store.is_remote(path) else pathlib.Path(path)
    try:
        return decode(object_store.read_bytes(path), name=path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f'cannot read {path}: {getattr(error, "strerror", "") or error}') from error


def read_json(path: str | os.PathLike) -> Any:
    """Returns the value stored in a JSON file.

    Raises:
        UserError: the file is missing, is not UTF-8 or is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not valid JSON ({error}); restore or delete it') from error


def sha256_of(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's contents, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
