"""Measurements of the links between devices and hosts: collectives, and a shared folder."""

import dataclasses
import os
import pathlib
import secrets
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax import files, object_store
from gpt_jax.errors import UserError
from gpt_jax.parallel import peers


@dataclasses.dataclass(frozen=True, slots=True)
class Bandwidth:
    """The bandwidth of one device, as NCCL's tests define it (bus bandwidth)."""

    all_reduce: float  # bytes/s
    all_gather: float


def measure_bandwidth(mesh: Mesh, *, megabytes: int = 16, repeats: int = 3) -> Bandwidth:
    """Times collectives over all devices of a mesh on arrays of that size; the best of `repeats`.

    Bytes are counted as in https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md:
    2 (n - 1) / n of the array for an all-reduce, (n - 1) / n for an all-gather.
    """
    count = mesh.size
    width = megabytes * 2**20 // 4 // count
    sharded = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    whole = NamedSharding(mesh, PartitionSpec())
    part = np.ones((len(sharded.addressable_devices), width), np.float32)
    pieces = jax.make_array_from_process_local_data(sharded, part, (count, width))
    rows = jax.jit(
        lambda x: jnp.broadcast_to(x[:, None], (count, count, width)), out_shardings=sharded
    )(pieces)
    reduce = jax.jit(lambda x: x.sum(0), out_shardings=whole)
    gather = jax.jit(lambda x: x, out_shardings=whole)
    size = megabytes * 2**20
    return Bandwidth(
        all_reduce=2 * (count - 1) / count * size / _best_seconds(reduce, rows, repeats),
        all_gather=(count - 1) / count * size / _best_seconds(gather, pieces, repeats),
    )


def check_shared_folder(folder: pathlib.Path) -> float:
    """Writes a file in process 0 and reads it in all; returns the time taken, in seconds.

    Raises:
        UserError: a process cannot see the file, or the folder cannot be written.
    """
    began = time.monotonic()
    name = peers.gather('shared folder', secrets.token_hex(8))[0]
    path = folder / f'.probe-{name}'
    if peers.is_primary():
        files.write_text(path, name)
    peers.barrier('shared folder written')
    try:
        seen = object_store.read_bytes(path).decode() == name
    except OSError:
        seen = False
    everyone = peers.gather('shared folder read', seen)
    if peers.is_primary():
        path.unlink(missing_ok=True)
        _remove_if_empty(folder)
    blind = [str(index) for index, each in enumerate(everyone) if not each]
    if blind:
        raise UserError(
            f'process {", ".join(blind)} does not see the files of process 0 in {folder}; '
            f'--workdir must be on a disk that all hosts share, or be gs:// or s3://'
        )
    return time.monotonic() - began


def _remove_if_empty(folder: pathlib.Path) -> None:
    if not object_store.is_remote(folder) and not os.listdir(folder):
        folder.rmdir()


def _best_seconds(function, argument: jax.Array, repeats: int) -> float:
    """Returns the time of the fastest of several calls, after one that compiles and connects."""
    jax.block_until_ready(function(argument))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - began)
    return min(times)
