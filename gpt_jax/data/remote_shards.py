"""Prepared shards in an object store: uploaded once, and copied once to the cache of each machine.

Copies are compared with the hashes of the manifest, after copying and whenever they are opened. A
copy that differs is fetched again. Small shards are hashed each time; large ones only if their
size or date changed.
"""

import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from gpt_jax import files, object_store
from gpt_jax import tokenizer as tokenizers
from gpt_jax.data import locations, verified
from gpt_jax.data.config import DataConfig
from gpt_jax.data.shard_manifest import MANIFEST, TOKENIZER, Manifest, ShardInfo
from gpt_jax.errors import UserError
from gpt_jax.telemetry.progress import Progress


def local_folder(
    source: str,
    config: DataConfig,
    *,
    key: str = 'config.data.source',
    progress: Callable[..., AbstractContextManager[Any]] = Progress,
) -> pathlib.Path:
    """Returns the local folder of prepared shards: `source`, or its verified copy in the cache.

    One process per machine copies; the others wait for it.

    Raises:
        UserError: the store does not answer, has no finished shards, or they differ from its
            manifest; or the disk is full.
    """
    if not object_store.is_remote(source):
        return pathlib.Path(source).expanduser()
    remote = object_store.to_path(source, key=key)
    object_store.check_reachable(remote, key=key)
    name = hashlib.sha256(os.fspath(remote).encode()).hexdigest()[:12]
    folder = locations.cache_folder(config) / 'remote' / f'{remote.name}-{name}'
    manifest = _read_manifest(remote, key=key)
    with locations.lock(folder):
        try:
            _copy(remote, folder, manifest, progress)
        except OSError as error:
            raise files.cannot_write(folder, error) from error
    return folder


def target_folder(target: str, *, key: str) -> pathlib.Path:
    """Returns `target` as a path. Raises UserError if it is no object store or does not answer."""
    remote = object_store.to_path(target, key=key)
    if not object_store.is_remote(remote):
        raise UserError(f'{key}={target} must begin with gs:// or s3://')
    object_store.check_reachable(remote, key=key)
    return remote


def publish(folder: pathlib.Path, target: str, *, key: str) -> None:
    """Copies prepared shards to an object store; the manifest last, since readers wait for it.

    Raises:
        UserError: the store does not answer, or has other shards under this name.
    """
    remote = target_folder(target, key=key)
    manifest = Manifest.read(folder)
    if (remote / MANIFEST).exists():
        if Manifest.read(remote, check_files=False) == manifest:
            return
        raise UserError(f'{key}={target} holds other shards already; choose another name')
    object_store.upload_folder(folder / TOKENIZER, remote / TOKENIZER)
    for path in _files(folder, manifest):
        object_store.upload(path, remote / path.name)
    object_store.upload(folder / MANIFEST, remote / MANIFEST)


def _read_manifest(remote: pathlib.Path, *, key: str) -> Manifest:
    try:
        with object_store.naming_failures(remote):
            found = (remote / MANIFEST).exists()
    except FileNotFoundError:
        found = False
    if not found:
        raise UserError(
            f'{key}={remote} has no finished {MANIFEST}; put prepared shards there with '
            f'--mode prepare --publish={remote}'
        )
    return Manifest.read(remote, check_files=False)


def _copy(
    remote: pathlib.Path,
    folder: pathlib.Path,
    manifest: Manifest,
    progress: Callable[..., AbstractContextManager[Any]],
) -> None:
    """Makes `folder` a copy of `remote`; files that are already correct are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob('.*.tmp-*'):  # of a process that was killed
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    known = verified.read_verified(folder)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    missing = [shard for shard in shards if not verified.is_whole(folder, shard, known)]
    if missing or not _has_tokenizer(folder, manifest) or not _has_manifest(folder, manifest):
        (folder / MANIFEST).unlink(missing_ok=True)  # nothing reads an incomplete folder
        _fetch_tokenizer(remote, folder, manifest)
        total = sum(shard.tokens for shard in missing)
        with progress(total, unit='tokens', description='fetch shards') as line:
            for number, shard in enumerate(missing, 1):
                _fetch(remote, folder, shard)
                line.update(sum(shard.tokens for shard in missing[:number]))
    verified.remember(folder, shards, known)
    if not (folder / MANIFEST).is_file():
        manifest.write(folder)


def _fetch(remote: pathlib.Path, folder: pathlib.Path, shard: ShardInfo) -> None:
    """Copies a shard. Raises UserError if it differs from the manifest."""
    temporary = folder / f'.{shard.name}.tmp-{os.getpid()}'
    temporary.mkdir()
    try:
        for path in shard.paths(temporary):
            try:
                object_store.download(remote / path.name, path)
            except FileNotFoundError as error:
                raise UserError(
                    f'{remote / path.name} is missing; publish the shards again'
                ) from error
        if shard.content_hash(temporary) != shard.sha256:
            raise UserError(
                f'{remote / shard.name}.* is not what {MANIFEST} beside it says; delete {remote} '
                f'and publish the shards again'
            )
        for path in shard.paths(folder):
            os.replace(temporary / path.name, path)
    finally:
        shutil.rmtree(temporary)


def _fetch_tokenizer(remote: pathlib.Path, folder: pathlib.Path, manifest: Manifest) -> None:
    shutil.rmtree(folder / TOKENIZER, ignore_errors=True)
    object_store.download_folder(remote / TOKENIZER, folder / TOKENIZER)
    if not _has_tokenizer(folder, manifest):
        raise UserError(
            f'{remote / TOKENIZER} is not the tokenizer of the shards beside it; delete {remote} '
            f'and publish the shards again'
        )


def _has_tokenizer(folder: pathlib.Path, manifest: Manifest) -> bool:
    try:
        fingerprint = tokenizers.load(folder / TOKENIZER).fingerprint()
    except UserError:
        return False
    return fingerprint == manifest.tokenizer_fingerprint


def _has_manifest(folder: pathlib.Path, manifest: Manifest) -> bool:
    try:
        return Manifest.read(folder) == manifest
    except UserError:
        return False


def _files(folder: pathlib.Path, manifest: Manifest) -> list[pathlib.Path]:
    """Returns the files of all shards."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return [path for shard in shards for path in shard.paths(folder)]
