"""The rows of a task: from local files, archives and folders of them, or from the hub."""

import pathlib
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from gpt_jax import files
from gpt_jax.data import documents
from gpt_jax.data.input_files import files_below, is_jsonl, open_decompressed
from gpt_jax.errors import UserError
from gpt_jax.evaluate.task import Hub, Task

HUB = 'hub'  # the value of --task_data for the Hugging Face hub
_OTHER_FILES = ('models_summary.jsonl',)  # in BLiMP's archive; holds no rows
_ARCHIVES = ('.tar', '.tar.xz', '.tar.gz', '.tar.bz2', '.tgz')


def read_rows(name: str, task: Task, places: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields each row of the task `name` after its place, such as the file and line.

    Args:
      places: files, archives and folders, of which the files named after the task are read; or
        'hub' alone.

    Raises:
        UserError: there is no such file, or more than one, or it cannot be read.
    """
    if list(places) == [HUB]:
        yield from _read_hub(name, task.hub)
        return
    for path in _find(name, task, places):
        yield from _read_file(path, texts=task.texts)


def _find(name: str, task: Task, places: Sequence[str]) -> list[pathlib.Path]:
    """Returns the files that hold the rows of the task."""
    hub = f', or {HUB} for {task.hub.path} of the Hugging Face hub' if task.hub else ''
    wanted = f'a file {name}*.jsonl{" or .txt" if task.texts else " or .parquet"}'
    if not places:
        raise UserError(
            f'{name} needs its rows: give --task_data (config.eval.task_data) {wanted}, a folder '
            f'with one{hub}'
        )
    found = []
    for place in map(lambda each: pathlib.Path(each).expanduser(), places):
        if not place.exists():
            raise UserError(f'--task_data={place} does not exist; give a file or a folder')
        if place.is_dir():
            inside = [path for path in files_below(place) if _holds_rows(path, task)]
            own = [path for path in inside if _is_called(name, path.relative_to(place).parts)]
            found += own or (inside if _is_called(name, [place.resolve().name]) else [])
        elif len(places) == 1 or _is_called(name, [place.name]):
            found.append(place)
    if not found:
        raise UserError(
            f'--task_data={",".join(places)} has nothing called {name}; give {wanted}, a folder '
            f'with one{hub}'
        )
    if len(found) > 1 and not task.in_files:
        raise UserError(
            f'{name} is one file and here are {len(found)} ({", ".join(map(str, found[:4]))}'
            f'{", …" if len(found) > 4 else ""}); name the right one with --task_data'
        )
    return found


def _is_called(name: str, parts: Iterable[str]) -> bool:
    """Returns whether the name of a folder or file starts with the task's: ARC-Easy-Test.jsonl."""
    return any(part.lower().replace('-', '_').startswith(name) for part in parts)


def _holds_rows(path: pathlib.Path, task: Task) -> bool:
    if path.name in _OTHER_FILES:
        return False
    if task.texts and path.suffix == '.txt':
        return True
    return is_jsonl(path) or path.suffix == '.parquet' or path.name.endswith(_ARCHIVES)


def _read_file(path: pathlib.Path, *, texts: bool) -> Iterator[tuple[str, Any]]:
    if path.name.endswith(_ARCHIVES):
        yield from _read_archive(path)
    elif path.suffix == '.parquet':
        yield from _read_parquet(path)
    elif is_jsonl(path):
        with open_decompressed(path) as (_, file):
            yield from _read_jsonl(file, str(path))
    elif texts:
        with open_decompressed(path) as (_, file):
            yield str(path), {'text': files.decode(file.read(), name=path)}
    else:
        raise UserError(f'{path} is not .jsonl, .parquet or an archive of them; convert it')


def _read_archive(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Yields the rows of every .jsonl file in a tar archive, sorted by file name."""
    try:
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                inside = pathlib.PurePosixPath(member.name)
                hidden = inside.name.startswith('.') or inside.name in _OTHER_FILES
                if member.isfile() and inside.suffix == '.jsonl' and not hidden:
                    yield from _read_jsonl(archive.extractfile(member), f'{path}:{inside}')
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(':')
        raise UserError(f'cannot read {path} ({reason}); fetch it again') from error


def _read_jsonl(file: BinaryIO, where: str) -> Iterator[tuple[str, Any]]:
    for place, row in documents.json_lines(file, where):
        if isinstance(row, UserError):
            raise row
        yield place, row


def _read_parquet(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise documents.missing_package('pyarrow', str(path)) from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'{path} is not a readable parquet file ({reason})') from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f'{path}, row {number}', row


def _read_hub(name: str, hub: Hub | None) -> Iterator[tuple[str, Any]]:
    """Yields the rows of the task, loaded by `datasets`.

    Raises:
        UserError: the hub does not have the task, or it cannot be loaded.
    """
    if hub is None:
        raise UserError(f'the hub has no {name}; give --task_data a file or a folder')
    try:
        import datasets
    except ImportError as error:
        raise documents.missing_package('datasets', f'--task_data={HUB}') from error
    try:
        configurations = [hub.configuration]
        if hub.configuration == '*':
            configurations = sorted(datasets.get_dataset_config_names(hub.path))
        for configuration in configurations:
            rows = datasets.load_dataset(hub.path, configuration, split=hub.split)
            for number, row in enumerate(rows, start=1):
                yield f'{hub.path} {configuration or ""}, row {number}', row
    except Exception as error:  # the loader of a data set may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'cannot load {hub.path} for {name}: {reason}') from error
