"""Metrics per step, written to one or more sinks; a resumed run continues the same files.

A row has a step and flat keys, `{'step': 20, 'train/loss': 1.9123}`. On resumption, rows after the
checkpoint are removed, as the run writes them again.
"""

import contextlib
import itertools
import json
import math
import os
import pathlib
import re
import secrets
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self

from gpt_jax import files, object_store
from gpt_jax.errors import UserError
from gpt_jax.telemetry.bucket_upload import Mirror


class Sink(Protocol):
    """A destination of rows, made from the workdir and the step resumed from (None: a new run)."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Adds a row."""

    def flush(self) -> None:
        """Writes all rows so far to disk, so that they survive a crash of the machine."""

    def close(self) -> None:
        """Flushes and closes the sink."""


class JsonLines:
    """`metrics.jsonl`: one JSON object per line, readable during the run.

    Floats are stored exactly. NaN and infinities, which JSON lacks, are null.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int | None):
        self._path = workdir / 'metrics.jsonl'
        with _naming(self._path):
            _keep_lines(self._path, resume_step)
            workdir.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, 'a', encoding='utf-8', buffering=1)  # noqa: SIM115

    def write(self, step: int, row: Mapping[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        with _naming(self._path):
            self._file.write(json.dumps({'step': step, **finite}, allow_nan=False) + '\n')

    def flush(self) -> None:
        with _naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with _naming(self._path):
            self._file.close()


class TensorBoard:
    """Scalars in `tensorboard/`, in event files written by tensorboardX."""

    def __init__(self, workdir: pathlib.Path, resume_step: int | None):
        _import_tensorboardx()
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event_pb2, self._summary_pb2 = event_pb2, summary_pb2
        self._folder = workdir / 'tensorboard'
        with _naming(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob('events.out.tfevents.*'):
                _keep_events(path, resume_step)
            # SummaryWriter's queue would hide when a row is on disk, and errors of a full disk.
            # Without the suffix, a process started in the same second would overwrite the file.
            self._writer = event_file_writer.EventsWriter(
                str(self._folder / 'events'), f'.{time.time_ns():x}'
            )
            if resume_step is not None:
                # Makes a running TensorBoard drop the later rows that it has already read.
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(event_pb2.Event(step=resume_step + 1, session_log=start))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        value = self._summary_pb2.Summary.Value
        summary = self._summary_pb2.Summary(
            value=[value(tag=key, simple_value=number) for key, number in row.items()]
        )
        with _naming(self._folder):
            self._write(self._event_pb2.Event(step=step, summary=summary))

    def flush(self) -> None:
        with _naming(self._folder):
            self._writer.flush()

    def close(self) -> None:
        with _naming(self._folder):
            self._writer.close()

    def _write(self, event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


class Wandb:
    """Weights & Biases, an optional package; a resumed run continues under the same id.

    The service cannot delete rows: rows after the step resumed from stay as first written.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int | None):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "the metrics sink 'wandb' needs a package: pip install wandb, or leave it out"
            ) from error
        identity = workdir / 'wandb_id.txt'
        if resume_step is None or not identity.exists():
            files.write_text(identity, secrets.token_hex(8))
        self._run = wandb.init(
            project='gpt_jax',
            name=workdir.name,
            dir=str(workdir),
            id=identity.read_text(encoding='utf-8'),
            resume='allow',
        )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def flush(self) -> None:
        """Does nothing: wandb sends rows in the background and keeps a copy in the workdir."""

    def close(self) -> None:
        self._run.finish()


_OWN_EVENTS = re.compile(r'\.[0-9a-f]{15,16}$')  # the suffix of the `TensorBoard` sink

SINKS: dict[str, Callable[[pathlib.Path, int | None], Sink]] = {
    'jsonl': JsonLines,
    'tensorboard': TensorBoard,
    'wandb': Wandb,
}


class MetricsWriter:
    """A writer of rows to several sinks; a context manager that closes them on exit.

    For a workdir in an object store the sinks write to a local copy, see `Mirror`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        sinks: tuple[str, ...] = ('jsonl', 'tensorboard'),
        *,
        resume_step: int | None,
    ):
        """Opens the sinks and removes the rows after `resume_step`, or all rows if it is None.

        Raises:
          UserError: a sink is not in SINKS, its package is missing or its file cannot be written.
        """
        for name in sinks:
            if name not in SINKS:
                raise UserError(
                    f'there is no metrics sink {name!r}; choose from {", ".join(SINKS)}'
                )
        self._mirror = Mirror(workdir) if sinks and object_store.is_remote(workdir) else None
        folder = self._mirror.folder if self._mirror else pathlib.Path(workdir)
        self._sinks = [SINKS[name](folder, resume_step) for name in sinks]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Adds a row; accepts numpy and jax scalars. Raises UserError if the disk is full."""
        row = {key: value if isinstance(value, int) else float(value) for key, value in row.items()}
        for sink in self._sinks:
            sink.write(step, row)
        if self._mirror:
            self._mirror.push_if_due()

    def flush(self) -> None:
        """Writes all rows so far to disk; must be called before a checkpoint is saved."""
        for sink in self._sinks:
            sink.flush()
        if self._mirror:
            self._mirror.push()

    def close(self) -> None:
        """Flushes and closes every sink."""
        self.flush()
        for sink in self._sinks:
            sink.close()
        if self._mirror:
            self._mirror.close()


def read_rows(workdir: pathlib.Path) -> list[dict[str, float | None]]:
    """Returns the rows of `metrics.jsonl`, skipping incomplete or damaged lines.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    lines = object_store.read_bytes(workdir / 'metrics.jsonl').splitlines(keepends=True)
    return [row for row in map(_parse_row, lines) if row is not None]


def last_row(workdir: pathlib.Path, step: int) -> int:
    """Returns the last step up to `step` with a row in `metrics.jsonl`; 0 if there is none."""
    try:
        rows = read_rows(workdir)
    except FileNotFoundError:
        return 0
    return max((row['step'] for row in rows if row['step'] <= step), default=0)


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise files.cannot_write(path, error) from error


def _keep_lines(path: pathlib.Path, last_step: int | None) -> None:
    """Rewrites a JSON Lines file with the rows up to a step, dropping an incomplete last line.

    Raises:
        UserError: the file has complete lines but no row, so another program wrote it.
    """
    if not path.exists():
        return
    with open(path, 'rb') as old:
        whole = [line for line in itertools.islice(old, 100) if line.strip(b'\0\n')]
    if whole and whole[0].endswith(b'\n') and not any(_is_row_up_to(x, math.inf) for x in whole):
        raise UserError(f'{path} has no rows of a run and would be replaced; move it elsewhere')
    with open(path, 'rb') as old, files.atomic_file(path) as new:
        new.writelines(line for line in old if _is_row_up_to(line, last_step))


def _is_row_up_to(line: bytes, last_step: float | None) -> bool:
    row = None if last_step is None else _parse_row(line)
    return row is not None and row['step'] <= last_step


def _parse_row(line: bytes) -> dict[str, Any] | None:
    """Returns a row; None for a line that a crash of the machine left incomplete or damaged."""
    try:
        row = json.loads(line) if line.endswith(b'\n') else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get('step')) is int else None


def _import_tensorboardx() -> None:
    """Imports tensorboardX without its optional import of PyTorch, which takes seconds."""
    absent = 'torch' not in sys.modules
    if absent:
        sys.modules['torch'] = None  # type: ignore[assignment]  # makes `import torch` fail
    try:
        import tensorboardX  # noqa: F401
    finally:
        if absent:
            del sys.modules['torch']


def _keep_events(path: pathlib.Path, last_step: int | None) -> None:
    """Rewrites an event file with the events up to a step; deletes it if the step is None.

    Files of other programs, recognised by their suffix, are kept.
    """
    from google.protobuf.message import DecodeError
    from tensorboardX.proto import event_pb2

    if not _OWN_EVENTS.search(path.name):
        return
    if last_step is None:
        path.unlink()
        return
    kept = []
    with contextlib.suppress(DecodeError):  # nothing after a damaged record is readable
        for record, payload in _records(path.read_bytes()):
            if event_pb2.Event.FromString(payload).step <= last_step:
                kept.append(record)
    with files.atomic_file(path) as new:
        new.writelines(kept)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the records of a TFRecord file and their payloads, up to the first damaged one.

    A record is the length (u64), its checksum (u32), the payload and its checksum (u32):
    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """
    from tensorboardX import record_writer

    start = 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from('<Q', data, start)
        end = start + 12 + length + 4
        payload = data[start + 12 : end - 4]
        if end > len(data) or struct.unpack_from('<I', data, end - 4)[0] != (
            record_writer.masked_crc32c(payload)
        ):
            return
        yield data[start:end], payload
        start = end
