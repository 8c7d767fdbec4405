"""Checkpoints in an object store: written and read by tensorstore, each process its own part.

orbax, used on disks, cannot write to s3:// (0.12.8), and object stores cannot rename folders. The
layout of a step is

    <step>/<item>/<path of the array>/   a zarr array; a chunk is a device's shard or a part of it
    <step>/meta/metadata                 the document, as on a disk

The document is written last, after the arrays of all processes. A step without a document is
unfinished: readers skip it and the next writer removes it. `disk` defines the same names.
"""

import dataclasses
import functools
import math
import pathlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from orbax.checkpoint.checkpoint_managers import preservation_policy

from gpt_jax import files, object_store
from gpt_jax.checkpoint.manifest import DAMAGED, DamagedError, document_path, list_steps
from gpt_jax.errors import UserError
from gpt_jax.parallel import peers

# The wait for the slowest process; the loss of a process is noticed long before.
BARRIER_SECONDS = 3600
CHUNK_BYTES = 2**26  # maximum per object: parallel writes are faster, and s3:// allows 5 GiB
# Codes of tensorstore errors that do not mean damage: network, credentials, quota.
_REFUSED = re.compile(
    '^(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|RESOURCE_EXHAUSTED'
    '|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN)'
)
_COMPRESSOR = {'id': 'zstd', 'level': 1}


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """A checkpoint as a preservation policy needs it."""

    step: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """The part of an array that this process writes: shards of which it has the first replica."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    shards: list[tuple[tuple[slice, ...], np.ndarray]]


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
        del read_only  # a reader calls no method that writes
        self._folder, self._preservation = folder, preservation
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self, step: int, trees: Mapping[str, Mapping[str, jax.Array]], sealed: Mapping[str, Any]
    ) -> None:
        """Copies the arrays to the host, so that they may be donated, and starts writing them.

        Args:
          step: its number, not in the store yet.
          trees: item -> path in it -> array.
          sealed: the document, written after all arrays.

        Raises:
            UserError: the previous save failed.
        """
        self.wait()
        for array in jax.tree.leaves(dict(trees)):
            array.copy_to_host_async()
        parts = {
            f'{item}/{name}': _to_host(array)
            for item, tree in trees.items()
            for name, array in tree.items()
        }
        self._thread = threading.Thread(
            target=self._run,
            args=(functools.partial(self._write, step, parts, sealed),),
            name='checkpoint',
            daemon=True,
        )
        self._thread.start()
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is in the store. Raises UserError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise UserError(
                f'cannot write {self._folder}: {object_store.unreachable(error)}'
            ) from error

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()

    def delete(self, step: int) -> None:
        """Removes a step, its document first. All processes wait until the first has done it."""
        if peers.is_primary():
            delete_step(self._folder, step)
        peers.barrier('delete checkpoint', seconds=BARRIER_SECONDS)

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # raised by the next `wait`
            self._error = error

    def _write(self, step: int, parts: Mapping[str, _Part], sealed: Mapping[str, Any]) -> None:
        folder = self._folder / str(step)
        opened = {
            name: _open_to_write(folder / name, part).result() for name, part in parts.items()
        }
        writes = [
            opened[name][index].write(shard, can_reference_source_data_indefinitely=True)
            for name, part in parts.items()
            for index, shard in part.shards
        ]
        for write in writes:
            write.result()
        peers.barrier('checkpoint written', seconds=BARRIER_SECONDS)
        if peers.is_primary():
            files.write_json(document_path(self._folder, step), sealed)
            self._remove_old()
        peers.barrier('checkpoint finished', seconds=BARRIER_SECONDS)

    def _remove_old(self) -> None:
        steps = list_steps(self._folder)
        kept = self._preservation.should_preserve(
            [_Step(step) for step in steps], context=preservation_policy.PreservationContext()
        )
        for step, keep in zip(steps, kept, strict=True):
            if not keep:
                delete_step(self._folder, step)


def delete_step(folder: pathlib.Path, step: int) -> None:
    """Removes a step, its document first, so that the rest is not taken for a checkpoint."""
    object_store.remove(document_path(folder, step))
    object_store.remove_folder(folder / str(step))


def remove_all(folder: pathlib.Path, *, but: int | None = None) -> None:
    """Deletes every checkpoint, damaged ones included, except step `but`; keeps other objects."""
    for step in list_steps(folder):
        if step != but:
            delete_step(folder, step)
    for name in object_store.list_names(folder / DAMAGED):
        if name.rstrip('+').isdecimal():
            object_store.remove_folder(folder / DAMAGED / name)


def list_damaged(folder: pathlib.Path) -> list[str]:
    """Returns the names of the damaged steps in their folder; [] if it does not exist."""
    return object_store.list_names(folder)


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes the steps that have no document: their save failed or its process died."""
    begun = {int(name) for name in object_store.list_names(folder) if name.isdecimal()}
    for step in sorted(begun.difference(list_steps(folder))):
        delete_step(folder, step)


def set_aside(folder: pathlib.Path, step: int, target: pathlib.Path) -> pathlib.Path:
    """Moves a damaged step to `target`, with a + appended while the name is taken."""
    while object_store.list_objects(target):
        target = target.with_name(f'{target.name}+')
    object_store.move_folder(folder / str(step), target)
    return target


def read_item(
    folder: pathlib.Path, tree: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads the arrays of one item, only the shards of this process's devices.

    Args:
      folder: the item's folder in a step.
      tree: path -> shape, dtype and sharding.

    Raises:
        DamagedError: an array is missing or invalid.
        UserError: the store does not answer; the array may be intact.
    """
    try:
        # Finished steps never change, so a chunk that two devices need is fetched once.
        opened = {
            name: ts.open(_spec(folder / name) | {'recheck_cached_data': 'open'}, open=True)
            for name in tree
        }
        reads = {name: _begin_reads(opened[name].result(), leaf) for name, leaf in tree.items()}
        return {name: _assemble(reads[name], leaf) for name, leaf in tree.items()}
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # out of memory does not mean damaged
    except Exception as error:  # tensorstore raises ValueError and others
        if _REFUSED.search(str(error)):
            raise UserError(f'{folder}: {object_store.unreachable(error)}') from error
        raise DamagedError(str(error).partition('\n')[0][:120] or type(error).__name__) from error


def _spec(folder: pathlib.Path) -> dict[str, Any]:
    return {'driver': 'zarr', 'kvstore': object_store.kvstore(folder)}


def _to_host(array: jax.Array) -> _Part:
    """Copies the part of an array that this process writes: the first replica of each shard."""
    # An array that is local to each process is written by the first process.
    mine = peers.is_primary() or not array.is_fully_addressable
    shards = [x for x in array.addressable_shards if mine and x.replica_id == 0]
    return _Part(
        shape=array.shape,
        dtype=array.dtype,
        chunk=_chunk_shape(array.sharding.shard_shape(array.shape), array.dtype.itemsize),
        shards=[(shard.index, np.array(shard.data, copy=True)) for shard in shards],
    )


def _chunk_shape(shard: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Returns the shape of a shard, split evenly from its first axis on to fit `CHUNK_BYTES`."""
    chunk = list(shard)
    for axis, size in enumerate(shard):
        parts = 1
        while math.prod(chunk) * itemsize > CHUNK_BYTES and parts < size:
            parts += 1
            if size % parts == 0:
                chunk[axis] = size // parts
    return tuple(chunk)


def _open_to_write(folder: pathlib.Path, part: _Part) -> ts.Future:
    """Opens an array whose chunks never span shards, so no two processes write the same chunk.

    The first process writes the metadata; the others assume it.
    """
    primary = peers.is_primary()
    return ts.open(
        _spec(folder) | {'metadata': {'compressor': _COMPRESSOR}},
        create=primary,
        open=True,
        assume_metadata=not primary,
        dtype=part.dtype.name,
        shape=part.shape,
        chunk_layout=ts.ChunkLayout(write_chunk_shape=part.chunk),
    )


def _begin_reads(store: ts.TensorStore, leaf: jax.ShapeDtypeStruct) -> dict[Any, ts.Future]:
    """Starts to read each slice that the devices of this process need, once."""
    if store.shape != leaf.shape or store.dtype.numpy_dtype != leaf.dtype:
        raise DamagedError(f'an array has shape {store.shape} and dtype {store.dtype.name}')
    wanted = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    indices = {_key(index): index for index in wanted.values()}
    return {key: store[index].read() for key, index in indices.items()}


def _assemble(reads: Mapping[Any, ts.Future], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: reads[_key(index)].result()
    )


def _key(index: Sequence[slice]) -> tuple[tuple[int | None, int | None], ...]:
    """Returns a hashable key for slices, which are not hashable before Python 3.12."""
    return tuple((part.start, part.stop) for part in index)
