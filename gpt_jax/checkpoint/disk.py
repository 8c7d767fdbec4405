"""Checkpoints on a disk, by orbax: a step is written beside its final name and then renamed.

    <step>/<item>/   one named tree: the arrays by path, so that any subset of items can be read
    <step>/meta/     the document

The trees are stored flat; optax's tuples, None and empty states come from the tree to restore
into. `bucket` defines the same names for object stores.
"""

import contextlib
import functools
import logging
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from gpt_jax import files
from gpt_jax.checkpoint.manifest import DAMAGED, META, DamagedError, list_steps


class Writer:
    """A writer of steps, perhaps in the background. All processes make the same calls in order."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        preservation: preservation_policy.PreservationPolicy,
        asynchronous: bool,
        read_only: bool,
    ):
        _silence_orbax()
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=asynchronous,
            # In the background, a folder that cannot be created blocks all other threads.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            preservation_policy=preservation,
            lightweight_initialize=True,  # losses come from the documents, not from orbax metrics
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def save(
        self, step: int, trees: Mapping[str, Mapping[str, jax.Array]], sealed: Mapping[str, Any]
    ) -> None:
        """Returns once the arrays are copied to the host.

        Args:
          step: its number, not in the folder yet.
          trees: item -> path in it -> array.
          sealed: the document.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        args = ocp.args.Composite(**items, **{META: ocp.args.JsonSave(sealed)})
        # force: without it, orbax applies its own save interval.
        self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises the error of a failed save."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends the background threads."""
        self._manager.close()

    def delete(self, step: int) -> None:
        """Removes a step."""
        self._manager.delete(step)


def remove_all(folder: pathlib.Path, *, but: int | None = None) -> None:
    """Deletes every checkpoint, damaged ones included, except step `but`; keeps other files."""
    for step in list_steps(folder):
        if step != but and (folder / str(step)).is_dir():
            shutil.rmtree(folder / str(step))
    for path in (folder / DAMAGED).glob('*'):
        if path.is_dir() and path.name.rstrip('+').isdecimal():
            shutil.rmtree(path)
    with contextlib.suppress(OSError):  # missing, or holding files of others
        (folder / DAMAGED).rmdir()


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes the half-written steps of saves that failed or whose process died."""
    for _ in range(10):
        unfinished = list(folder.glob('*.orbax-checkpoint-tmp*'))
        if not unfinished:
            return
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.2)  # other threads of the failed save may still be writing: look again


def set_aside(folder: pathlib.Path, step: int, target: pathlib.Path) -> pathlib.Path:
    """Moves a damaged step to `target`, with a + appended while the name is taken."""
    target.parent.mkdir(exist_ok=True)
    while target.exists():
        target = target.with_name(f'{target.name}+')
    return (folder / str(step)).rename(target)


def list_damaged(folder: pathlib.Path) -> list[str]:
    """Returns the names of the damaged steps in their folder; [] if it does not exist."""
    return sorted(path.name for path in folder.glob('*'))


def read_item(folder: pathlib.Path, tree: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Reads one named tree.

    Uses orbax's handler, because its manager has a barrier that a failed process never reaches.

    Raises:
      DamagedError: the tree is not what was saved.
      UserError: this machine cannot read the files; they may be intact.
    """
    try:
        return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(tree))
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # out of memory does not mean damaged
    except Exception as error:  # orbax and tensorstore raise many kinds
        if files.is_access_error(error):
            raise files.cannot_read(folder, error) from error
        raise DamagedError(str(error).partition('\n')[0][:120] or type(error).__name__) from error


@functools.cache
def _silence_orbax() -> None:
    """Keeps orbax from printing errors, which are also raised and would be shown twice."""

    def show(unraisable: Any, shown_by: Callable[[Any], Any] = sys.unraisablehook) -> None:
        # If one array cannot be written, orbax closes before tensorstore is done with the others.
        if str(unraisable.exc_value) != 'Event loop is closed':
            shown_by(unraisable)

    for name in ('absl', 'asyncio'):  # asyncio reports orbax tasks that were never awaited
        logging.getLogger(name).addFilter(
            lambda record: 'orbax' not in record.pathname + record.getMessage()
        )
    sys.unraisablehook = show
