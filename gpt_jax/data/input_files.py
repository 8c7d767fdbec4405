"""Search for the files that `config.data.source` names, and their decompression."""

import contextlib
import glob
import gzip
import io
import itertools
import os
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO

from gpt_jax import object_store
from gpt_jax.data import documents
from gpt_jax.data.config import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.files import NEVER_TEXT, UTF16_MARKS

_JSONL_SUFFIXES = ('.jsonl', '.ndjson')
_BINARY_PROBE_BYTES = 8192
_ZSTD_READ_BYTES = 2**17


def source_files(config: DataConfig, wanted: Callable[[pathlib.Path], bool]) -> list[pathlib.Path]:
    """Returns the files that `config.source` names, in order of their names.

    A file names itself. A folder names the files below it that are `wanted` and not hidden. A glob
    (`**` spans folders) names all its matches.

    Raises:
        UserError: there are none.
    """
    if not config.source:
        raise no_source(config)
    if object_store.is_remote(config.source):
        raise UserError(
            f'config.data.source={config.source}: of an object store only shards are read '
            f'(config.data.corpus=shards); put them there with --mode prepare --publish'
        )
    path = pathlib.Path(config.source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        below = files_below(path)
        takes = [wanted(file) for file in below]
        found = list(itertools.compress(below, takes))
        _name_left_out(
            path, [file for file, taken in zip(below, takes, strict=True) if not taken], config
        )
    else:
        matches = map(pathlib.Path, glob.glob(str(path), recursive=True))
        found = sorted((file for file in matches if file.is_file()), key=pathlib.Path.as_posix)
    if not found:
        raise UserError(
            f'config.data.source={config.source!r} names no {config.corpus} files; '
            'give a file, a folder or a glob that exists'
        )
    return found


def _name_left_out(
    root: pathlib.Path, files: list[pathlib.Path], config: DataConfig, *, shown: int = 3
) -> None:
    """Prints the number of skipped files of a folder, and the first names."""
    if files:
        names = ', '.join(str(file.relative_to(root)) for file in files[:shown])
        more = ', …' if len(files) > shown else ''
        print(
            f'left out {len(files)} files of {root} that are no {config.corpus}: {names}{more}',
            flush=True,
        )


def warn_of_records(files: list[pathlib.Path]) -> None:
    """Prints a warning if a file to be read as plain text looks like records."""
    for path in files:
        if path.suffix == '.csv':
            advice = 'convert it to JSON lines and set config.data.corpus=jsonl'
        elif is_jsonl(path):
            with open_decompressed(path) as (_, file):
                is_chat = b'"messages"' in file.readline(_BINARY_PROBE_BYTES)
            corpus = 'chat' if is_chat else 'jsonl'
            advice = f'config.data.corpus={corpus} reads the text in it'
        else:
            continue
        print(f'warning: {path} is read as plain text, its syntax included; {advice}', flush=True)
        return


def files_below(
    root: pathlib.Path, *, skip: Collection[str] = (), follow_links: bool = True
) -> list[pathlib.Path]:
    """Returns all files below a folder, sorted by relative path.

    Hidden files and folders, and folders in `skip`, are left out. Unreadable folders are left out
    and printed. A folder that several links lead to is read once.
    """
    found: list[pathlib.Path] = []
    seen: set[tuple[int, int]] = set()

    def is_new(folder: pathlib.Path) -> bool:
        try:
            status = folder.stat()
        except OSError:  # a broken link
            return False
        place = (status.st_dev, status.st_ino)
        return not (place in seen or seen.add(place))

    def leave_out(error: OSError) -> None:
        print(f'left out: {error.filename} ({error.strerror})', flush=True)

    is_new(root)
    for folder, folders, names in os.walk(root, onerror=leave_out, followlinks=follow_links):
        folders[:] = [
            name
            for name in sorted(folders)
            if name not in skip and not name.startswith('.') and is_new(pathlib.Path(folder, name))
        ]
        found += [pathlib.Path(folder, name) for name in names if not name.startswith('.')]
    return sorted(
        (path for path in found if path.is_file()), key=lambda path: path.relative_to(root).parts
    )


def looks_binary(path: pathlib.Path) -> bool:
    """Returns whether a file has a zero byte near its start, git's test for binary files.

    UTF-16 text has zero bytes but does not count as binary, so that reading it raises an error
    that names the encoding.
    """
    with open_decompressed(path) as (_, content):
        head = content.read(_BINARY_PROBE_BYTES)
    is_document = head.startswith(NEVER_TEXT)
    return is_document or (b'\0' in head and not head.startswith(UTF16_MARKS))


@contextlib.contextmanager
def open_decompressed(path: pathlib.Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Opens a file that may be compressed; yields the file on disk and its content.

    Raises:
        UserError: the file cannot be read, is damaged, or needs a package that is missing.
    """
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    try:
        with open(path, 'rb') as raw:
            if path.suffix == '.gz':
                content = gzip.GzipFile(fileobj=raw)
            elif path.suffix == '.zst':
                try:
                    import zstandard
                except ImportError as error:
                    raise documents.missing_package('zstandard', str(path)) from error
                damaged += (zstandard.ZstdError,)
                content = io.BufferedReader(_ZstdFile(raw, zstandard.ZstdDecompressor()))
            else:
                content = raw
            yield raw, content
    except damaged as error:
        raise UserError(f'{path} is damaged ({error}); fetch or compress it again') from error
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from error


class _ZstdFile(io.RawIOBase):
    """The content of all frames of a .zst file; raises an error if the file is truncated.

    zstandard's own reader treats a truncated file as complete.
    """

    def __init__(self, raw: BinaryIO, decompressor: Any):
        self._raw, self._decompressor = raw, decompressor
        self._frame = decompressor.decompressobj()
        self._content = memoryview(b'')
        self._in_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            data = self._frame.unused_data if self._frame.eof else b''
            if self._frame.eof:
                self._frame, self._in_frame = self._decompressor.decompressobj(), False
            data = data or self._raw.read(_ZSTD_READ_BYTES)
            if not data:
                if self._in_frame:
                    raise EOFError('it ends in the middle')
                return 0
            self._in_frame = True
            self._content = memoryview(self._frame.decompress(data))
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size


def is_jsonl(path: pathlib.Path) -> bool:
    """Returns whether the name has a suffix of JSON lines, compressed or not."""
    name = path.name
    for suffix in documents.COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.endswith(_JSONL_SUFFIXES)


def no_source(config: DataConfig) -> UserError:
    """Returns the error for a corpus that needs a source and has none."""
    return UserError(
        f'config.data.corpus={config.corpus} needs config.data.source; set it to what to read'
    )
