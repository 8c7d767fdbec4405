"""Standard streams that never end a run: any encoding, closed pipes, closed descriptors."""

import errno
import io
import os
import sys
from typing import TextIO

SIGPIPE_STATUS = 141  # the exit status that a shell reports after SIGPIPE
_GONE = {errno.EPIPE, errno.EIO}  # a pipe without a reader, a terminal that was closed


class ReaderGone(BrokenPipeError):
    """The error for a standard output without a reader; all later output is discarded."""


class _Descriptor(io.FileIO):
    """A file descriptor whose output is discarded after its reader is gone."""

    raises = False  # whether the first discarded write raises ReaderGone

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.raises:
                raise ReaderGone(*error.args) from error
            return len(data)


def protect() -> None:
    """Replaces the process's standard streams by ones on which no output ends the program.

    Characters that the encoding lacks are shown as `?`. A closed stream reads and writes nothing.
    """
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        stream = getattr(sys, name)
        if stream is None:
            _open_nothing(number)
            setattr(sys, name, open(number, 'r' if number == 0 else 'w', closefd=False))  # noqa: SIM115
        elif number and stream is getattr(sys, f'__{name}__'):
            setattr(sys, name, guarded(stream))


def guarded(stream: TextIO) -> TextIO:
    """Returns a stream to the same descriptor that replaces characters and survives its reader."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(stream.fileno(), 'w', closefd=False)),
        encoding=stream.encoding,
        errors='backslashreplace' if stream.errors == 'backslashreplace' else 'replace',
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def end_without_reader(stream: TextIO, *, ends: bool) -> None:
    """Sets whether the first write without a reader raises `ReaderGone` or is discarded."""
    raw = getattr(getattr(stream, 'buffer', None), 'raw', None)
    if isinstance(raw, _Descriptor):
        raw.raises = ends


def _open_nothing(number: int) -> None:
    """Opens the null device under a closed descriptor's number, so that no other file gets it."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
