"""Checkpoints on a disk, by orbax: a step is written beside its final name and then renamed.

    <step>/<item>/   one named tree: the arrays by path, so that any subset of items can be read
    <step>/meta/     the document

The trees are stored flat: optax's tuples, None and empty states come from the tree to restore into.
`bucket` has the same names for object stores.
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
    """Saves steps, in the background if asked to; all processes must call it in the same order."""

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
            # Made in the background, a folder that cannot be made lets all other threads wait.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            preservation_policy=preservation,
            lightweight_initialize=True,  # the documents say what orbax would read from metrics
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def save(
        self, step: int, trees: Mapping[str, Mapping[str, jax.Array]], sealed: Mapping[str, Any]
    ) -> None:
        """Returns once the arrays are copied to the host.

        Args:
          step: its number; there is nothing of that name.
          trees: item -> path in it -> array.
          sealed: the document.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        args = ocp.args.Composite(**items, **{META: ocp.args.JsonSave(sealed)})
        # force: orbax would apply a cadence of its own.
        self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Returns when the last save is on disk. Raises what it failed with."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends the background threads."""
        self._manager.close()

    def delete(self, step: int) -> None:
        """Removes a step."""
        self._manager.delete(step)


def remove_all(folder: pathlib.Path, *, but: int | None = None) -> None:
    """Deletes every checkpoint, damaged ones included, except step `but`; other files stay."""
    for step in list_steps(folder):
        if step != but and (folder / str(step)).is_dir():
            shutil.rmtree(folder / str(step))
    for path in (folder / DAMAGED).glob('*'):
        if path.is_dir() and path.name.rstrip('+').isdecimal():
            shutil.rmtree(path)
    with contextlib.suppress(OSError):  # not there, or with files that are not ours
        (folder / DAMAGED).rmdir()


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what was being written when a save failed or its process died."""
    for _ in range(10):
        unfinished = list(folder.glob('*.orbax-checkpoint-tmp*'))
        if not unfinished:
            return
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.2)  # other threads of the failed save may still be writing: look again


def set_aside(folder: pathlib.Path, step: int, target: pathlib.Path) -> pathlib.Path:
    """Moves a damaged step to `target`, or where that is taken to that name and a +."""
    target.parent.mkdir(exist_ok=True)
    while target.exists():
        target = target.with_name(f'{target.name}+')
    return (folder / str(step)).rename(target)


def list_damaged(folder: pathlib.Path) -> list[str]:
    """The steps in the folder of those set aside; [] if it is not there."""
    return sorted(path.name for path in folder.glob('*'))


def read_item(folder: pathlib.Path, tree: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Reads one named tree.

    By orbax's handler and not its manager, which has a barrier where one that failed never comes.

    Raises:
      DamagedError: it is not what was saved.
      UserError: this machine does not let it be read, which says nothing about the files.
    """
    try:
        return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(tree))
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # too little memory says nothing about the files
    except Exception as error:  # orbax and tensorstore raise many kinds
        if files.may_be_whole(error):
            raise files.cannot_read(folder, error) from error
        raise DamagedError(str(error).partition('\n')[0][:120] or type(error).__name__) from error


@functools.cache
def _silence_orbax() -> None:
    """Keeps orbax from writing to the terminal: its failures are raised, and shown once."""

    def show(unraisable: Any, shown_by: Callable[[Any], Any] = sys.unraisablehook) -> None:
        # When one array cannot be written, orbax leaves before tensorstore is done with the others.
        if str(unraisable.exc_value) != 'Event loop is closed':
            shown_by(unraisable)

    for name in ('absl', 'asyncio'):  # the second reports tasks of orbax that nobody waited for
        logging.getLogger(name).addFilter(
            lambda record: 'orbax' not in record.pathname + record.getMessage()
        )
    sys.unraisablehook = show
