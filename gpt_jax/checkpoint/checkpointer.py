"""Checkpoints: named trees of arrays and some JSON, saved in the background, verified when read.

A checkpoint is a folder `<step>` with the arrays of each tree and a document. The document holds
the caller's meta and the fingerprints of the arrays. `disk` and `bucket` write and read
checkpoints on a disk and in an object store.

orbax detects a truncated array file but not a flipped bit, and counts an empty folder as the
latest step. Therefore everything read here is compared with the document.

In a run of several processes, all call the same methods in the same order. Each writes and reads
its part of the arrays and verifies the whole arrays. Only the first process moves and deletes. A
checkpoint that is damaged for one process is damaged for all.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from orbax.checkpoint.checkpoint_managers import preservation_policy

from gpt_jax import files, fingerprint, object_store
from gpt_jax.checkpoint import bucket, disk
from gpt_jax.checkpoint.manifest import (
    DAMAGED,
    DamagedError,
    by_item,
    check_fingerprints,
    check_structure,
    document_path,
    list_steps,
    lowest_loss,
    make_document,
    read_document,
    read_documents,
    read_losses,
    seal,
    to_abstract,
    to_array,
)
from gpt_jax.config_tree import INT32_MAX, check_domains, count, whole
from gpt_jax.errors import UserError
from gpt_jax.parallel import peers


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig:
    """Settings for when to save, and which checkpoints to keep."""

    save_every: int = whole(500)  # steps between checkpoints; 0 saves only when the run ends
    keep_last: int = count(2)  # number of newest checkpoints to keep
    keep_every: int = whole(0)  # also keep the steps that are multiples of this; 0 keeps none
    keep_best: bool = True  # also keep the checkpoint with the lowest evaluation loss
    asynchronous: bool = True  # write while training goes on


@dataclasses.dataclass(frozen=True, slots=True)
class Restored:
    """The result of `Checkpointer.restore`, with trees in the requested structure."""

    step: int
    items: dict[str, Any]
    meta: dict[str, Any]


class Checkpointer(contextlib.AbstractContextManager):
    """The checkpoints in one folder. A context manager: leaving it waits for the last save.

    A folder may have one writer at a time, and any number of readers (`read_only=True`). Readers
    move and delete nothing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: CheckpointConfig | None = None,
        *,
        read_only: bool = False,
        report: Callable[[str], None] = print,
    ):
        """Opens the folder; a writer creates it and removes what an interrupted save left.

        Raises:
          UserError: a value of `config` is invalid, or the folder cannot be written.
        """
        if object_store.is_remote(folder):
            self.folder, self._store = folder, bucket
        else:
            self.folder, self._store = pathlib.Path(folder).absolute(), disk
        self.config = config or CheckpointConfig()
        self._read_only = read_only
        self._report = report
        self._losses: dict[int, float | None] = {}  # by step, including the one being written
        check_domains(self.config, 'config.checkpoint')
        with self._naming_failures():
            self._writer = self._open()

    def __exit__(self, *_) -> None:
        self.close()

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        eval_loss: float | None = None,
    ) -> bool:
        """Saves named trees; returns once they are copied to the host, so they may be donated.

        Args:
          step: number of updates done. If this step is already saved, it is kept if it has the
            same bits and replaced otherwise.
          items: name -> tree of arrays; a tree without leaves (such as EMA switched off) is fine.
          meta: JSON stored with the arrays, such as the position in the data and the config.
          eval_loss: in nats, for `keep_best`; None, NaN or infinity is never the best.

        Returns:
          False if the same checkpoint already exists.

        Raises:
          UserError: this save, or the previous one in the background, failed (full disk). Older
            checkpoints are intact and the half-written one is removed.
        """
        self.wait()
        leaves = {name: to_array(name, x) for name, x in fingerprint.named_leaves(items).items()}
        document = make_document(leaves, meta=meta, eval_loss=eval_loss)
        saved = None
        if step in list_steps(self.folder):
            documents = read_documents(self.folder)
            saved = step in documents and documents[step]['leaves'] == document['leaves']
        saved = peers.gather('checkpoint', saved)[0]  # no process writes before all have read
        if saved:
            return False
        if saved is not None:
            with self._naming_failures():
                self._writer.delete(step)
        self._losses[step] = document['eval_loss']
        with self._naming_failures():
            self._writer.save(step, by_item(leaves), seal(document))
        return True

    def set_loss(self, step: int, eval_loss: float) -> None:
        """Writes the evaluation loss of a saved step into its document. Raises UserError."""
        self.wait()
        if peers.is_primary():
            document = read_document(self.folder, step)
            known = float(eval_loss) if math.isfinite(eval_loss) else None
            document['eval_loss'] = document['meta']['eval_loss'] = known
            files.write_json(document_path(self.folder, step), seal(document))
        self._losses[step] = eval_loss if math.isfinite(eval_loss) else None

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`. Raises UserError if `step` does not exist."""
        self.wait()
        step = self._find(step)
        for later in peers.gather('steps', list_steps(self.folder))[0]:
            if later > step:
                with self._naming_failures():
                    self._writer.delete(later)

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises UserError if it failed."""
        with self._naming_failures():
            self._writer.wait()

    def close(self) -> None:
        """Waits for the last save and ends the background threads. Raises UserError as `wait`."""
        self.wait()
        self._writer.close()

    def clear(self, *, but: int | None = None) -> None:
        """Deletes every checkpoint, damaged ones included, except step `but`.

        Other files of the folder are kept.
        """
        self.wait()
        self._writer.close()
        with self._naming_failures():
            peers.barrier('clear checkpoints')
            if peers.is_primary():
                self._store.remove_all(self.folder, but=but)
            self._writer = self._open()

    def steps(self) -> list[int]:
        """Returns the finished checkpoints with an intact document, oldest first."""
        return sorted(read_documents(self.folder))

    def best_step(self) -> int | None:
        """Returns the step with the lowest evaluation loss, the latest of equals, or None."""
        return lowest_loss(read_losses(self.folder))

    def meta(self, step: int | str = 'latest') -> dict[str, Any] | None:
        """Returns the meta of a step without reading its arrays; None if there is no checkpoint.

        Args:
          step: a number, 'latest' or 'best'.

        Raises:
          UserError: the step does not exist or its document is damaged.
        """
        documents = read_documents(self.folder)
        if step == 'latest':
            return documents[max(documents)]['meta'] if documents else None
        step = self._find(step)
        if step not in documents:
            raise self._unavailable(f'checkpoint {self.folder / str(step)} is damaged')
        return documents[step]['meta']

    def restore(
        self, abstract_items: Mapping[str, Any], *, step: int | str = 'latest'
    ) -> Restored | None:
        """Reads and verifies items; only those named in `abstract_items` are read from the disk.

        Args:
          abstract_items: name -> tree of ShapeDtypeStruct (or arrays) to restore into. Each leaf
            is restored with its `sharding`, independent of the devices it was saved from; without
            one, on the first device.
          step: 'latest' tries the newest first. A damaged checkpoint is moved to `damaged/` with a
            line to `report`, and the previous one is tried. A number or 'best' is that step only.

        Returns:
          None if there is no checkpoint and `step` is 'latest'.

        Raises:
          UserError: no checkpoint is readable; the requested step is missing or damaged; or the
            arrays have other shapes or dtypes than requested.
        """
        self.wait()
        if step != 'latest':
            found = peers.gather('step', self._find(step))[0]  # the best may change meanwhile
            try:
                return self._load(found, abstract_items)
            except DamagedError as error:
                raise self._unavailable(
                    f'checkpoint {self.folder / str(found)} is damaged ({error})', but=found
                ) from error
        damaged = self._store.list_damaged(self.folder / DAMAGED)
        # While another run writes to the folder, processes may see different steps.
        steps = peers.gather('steps', list_steps(self.folder))[0]
        for found in sorted(steps, reverse=True):
            try:
                return self._load(found, abstract_items)
            except DamagedError as error:
                damaged.append(str(found))
                self._set_aside(found, str(error))
        if damaged:
            raise UserError(
                f'no checkpoint in {self.folder} is readable (damaged: {", ".join(damaged)}); '
                'put back a copy of one, or start over with --fresh'
            )
        return None

    def _load(self, step: int, abstract_items: Mapping[str, Any]) -> Restored:
        abstract_items = jax.tree.map(to_abstract, dict(abstract_items))
        document = _agreed(lambda: read_document(self.folder, step))
        targets = fingerprint.named_leaves(abstract_items)
        check_structure(document, targets, where=f'checkpoint {self.folder / str(step)}')
        wanted = by_item(targets)
        folder = self.folder / str(step)
        read = self._store.read_item
        stored = _agreed(lambda: {item: read(folder / item, tree) for item, tree in wanted.items()})
        leaves = [stored[item][key] for item, tree in wanted.items() for key in tree]
        items = jax.tree.unflatten(jax.tree.structure(abstract_items), leaves)
        _agreed(lambda: check_fingerprints(document, items))
        return Restored(step, items, document['meta'])

    def _find(self, step: int | str) -> int:
        """Returns the number of an existing step. Raises UserError."""
        if step == 'best':
            best = self.best_step()
            if best is None:
                raise self._unavailable(f'no checkpoint in {self.folder} has an evaluation loss')
            return best
        # Longer numbers are not steps, and Python does not parse thousands of digits.
        if not str(step).isdecimal() or len(str(step)) > len(str(INT32_MAX)):
            raise UserError(f'the step must be a number, latest or best, not {step!r:.40}')
        if int(step) not in list_steps(self.folder):
            raise self._unavailable(f'there is no checkpoint of step {step} in {self.folder}')
        return int(step)

    def _unavailable(self, problem: str, *, but: int | None = None) -> UserError:
        steps = [str(step) for step in self.steps() if step != but]
        return UserError(f'{problem}; available: {", ".join(steps) or "none"}')

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a damaged step to `damaged/`, where it can be examined."""
        source = self.folder / str(step)
        if self._read_only:
            self._report(f'checkpoint {source} is damaged ({reason}); trying the one before')
            return
        target = self.folder / DAMAGED / str(step)
        if peers.is_primary():
            target = self._store.set_aside(self.folder, step, target)
        self._report(f'checkpoint {source} is damaged ({reason}); moved to {target}')
        self._reopen()

    def _open(self) -> disk.Writer | bucket.Writer:
        if not self._read_only:
            if peers.is_primary():
                self._store.remove_unfinished(self.folder)
            peers.barrier('open checkpoints', seconds=3600)  # a bucket is cleared object by object
        self._losses = read_losses(self.folder)
        kept = [preservation_policy.LatestN(self.config.keep_last)]
        if self.config.keep_every:
            kept.append(preservation_policy.EveryNSteps(self.config.keep_every))
        if self.config.keep_best:
            kept.append(_LowestLoss(self._losses))
        return self._store.Writer(
            self.folder,
            preservation=preservation_policy.AnyPreservationPolicy(kept),
            asynchronous=self.config.asynchronous,
            read_only=self._read_only,
        )

    def _reopen(self) -> None:
        """Clears what orbax has cached about the folder; removes half-written steps."""
        with contextlib.suppress(Exception):  # raises the original failure again
            self._writer.close()
        self._writer = self._open()

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Turns a failed write into a UserError, and restores the folder to before the save."""
        try:
            yield
        except Exception as error:
            if files.system_errno(error) is None:
                raise
            if peers.num_processes() == 1:  # with several, all would have to reopen; this one ends
                with contextlib.suppress(OSError):
                    self._reopen()
            raise files.cannot_write(self.folder, error) from error


class _LowestLoss:
    """An orbax PreservationPolicy that keeps the checkpoint with the lowest evaluation loss."""

    def __init__(self, losses: Mapping[int, float | None]):
        self._losses = losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = lowest_loss({info.step: self._losses.get(info.step) for info in checkpoints})
        return [info.step == best for info in checkpoints]


def _agreed(read: Callable[[], Any]) -> Any:
    """Returns `read()`; raises DamagedError on every process if it is raised on one."""
    value = problem = None
    try:
        value = read()
    except DamagedError as error:
        problem = str(error)
    problem = peers.any_of('restore', problem)
    if problem is not None:
        raise DamagedError(problem)
    return value
