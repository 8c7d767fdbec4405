"""The table of finished runs beside their workdirs: one line per run, tabs between columns."""

import contextlib
import csv
import fcntl
import io
import pathlib
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gpt_jax import files
from gpt_jax.config import RunConfig
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import count_params
from gpt_jax.telemetry.metrics import read_rows

TABLE = 'results.tsv'
_LOCK = '.results.lock'
COLUMNS = (
    *('name', 'finished', 'steps', 'tokens', 'seconds', 'train_loss', 'best_eval_loss'),
    *('eval_loss', 'bits_per_byte', 'parameters', 'commit', 'overrides'),
)


def describe_result(
    workdir: pathlib.Path,
    config: RunConfig,
    *,
    step: int,
    seconds: float,
    commit: str,
    overrides: Mapping[str, Any],
) -> dict[str, str]:
    """Returns the line of a finished run by column; losses come from its `metrics.jsonl`.

    Args:
      workdir: of the run, on a disk.
      config: of the run, final.
      step: the last step.
      seconds: of training, over all resumes.
      commit: of the code; '' if unknown.
      overrides: the values of flags by key below config.
    """
    try:
        rows = read_rows(workdir)
    except FileNotFoundError:  # config.train.sinks has no jsonl
        rows = []

    def values(name: str) -> list[float]:
        return [row[name] for row in rows if row.get(name) is not None]

    flags = (f'{key}={value}' for key, value in overrides.items())
    return {
        'name': workdir.absolute().name,
        'finished': time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime()),
        'steps': str(step),
        'tokens': str(step * config.train.batch_size * config.model.max_seq_len),
        'seconds': f'{seconds:.1f}',
        'train_loss': _number(values('train/loss')[-1:]),
        'best_eval_loss': _number(sorted(values('eval/loss'))[:1]),
        'eval_loss': _number(values('eval/loss')[-1:]),
        'bits_per_byte': _number(values('eval/bits_per_byte')[-1:]),
        'parameters': str(count_params(config.model)),
        'commit': commit[:12] + commit[40:],
        'overrides': ' '.join(map(shlex.quote, flags)),
    }


def record(folder: pathlib.Path, result: Mapping[str, str]) -> None:
    """Writes a run's line into the table in `folder`, in place of an earlier line of its name.

    Raises:
        UserError: the table cannot be written, or the file is another program's.
    """
    path = folder / TABLE
    with _locked(folder):
        table = {row['name']: row for row in _read(path)}
        table.pop(result['name'], None)
        columns = dict.fromkeys([*COLUMNS, *(name for row in table.values() for name in row)])
        lines = [list(columns)]
        lines += [[row.get(name, '') for name in columns] for row in (*table.values(), result)]
        text = '\n'.join('\t'.join(' '.join(cell.split()) for cell in line) for line in lines)
        files.write_text(path, text + '\n')


def _read(path: pathlib.Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    text = io.StringIO(files.read_text(path))
    reader = csv.DictReader(text, delimiter='\t', quoting=csv.QUOTE_NONE, restval='')
    if reader.fieldnames is not None and 'name' not in reader.fieldnames:
        raise UserError(f'{path} is not a table of runs; move it elsewhere')
    return [{key: row[key] for key in reader.fieldnames or ()} for row in reader]


def _number(values: list[float]) -> str:
    return f'{values[0]:.5g}' if values else ''


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Waits for the lock of the table; on a disk without locks, goes on without it."""
    try:
        file = open(folder / _LOCK, 'a')  # noqa: SIM115 (closed below)
    except OSError as error:
        raise files.cannot_write(folder / TABLE, error) from error
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
