"""Shards on a disk compared with the hashes of their manifest: small ones whenever they are opened,
large ones once, and again when their size or date changes.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from gpt_jax import files
from gpt_jax.data import locations
from gpt_jax.data.shard_manifest import MANIFEST, ShardInfo
from gpt_jax.errors import UserError

VERIFIED = 'verified.json'  # shard -> sizes and dates of its files when they were hashed


def check_shards(folder: pathlib.Path, shards: Iterable[ShardInfo]) -> None:
    """Refuses shards that are not what the manifest of their folder describes.

    Raises:
        UserError: naming the first one.
    """
    shards, verified = list(shards), read_verified(folder)
    for shard in shards:
        if not is_whole(folder, shard, verified):
            raise UserError(
                f'{shard.tokens_path(folder)} is damaged: it and the files beside it are not those '
                f'that {MANIFEST} describes; delete {folder} and prepare it again'
            )
    remember(folder, shards, verified)


def is_whole(folder: pathlib.Path, shard: ShardInfo, verified: dict[str, Any]) -> bool:
    """Returns whether the shard has its hash, or the size and date that it had with it."""
    try:
        stamp = _stamp(folder, shard)
        if stamp[0][0] >= locations.REMEMBERED_BYTES and verified.get(shard.name) == stamp:
            return True
        return shard.content_hash(folder) == shard.sha256
    except OSError:
        return False


def read_verified(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the sizes and dates of the shards that were found whole; {} where unknown."""
    try:
        return dict(json.loads((folder / VERIFIED).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def remember(folder: pathlib.Path, shards: Iterable[ShardInfo], verified: dict[str, Any]) -> None:
    """Records the sizes and dates of whole shards, except in a folder that is read-only."""
    stamps = verified | {shard.name: _stamp(folder, shard) for shard in shards}
    if stamps != verified:
        try:
            files.write_json(folder / VERIFIED, stamps)
        except UserError:  # hashed anew next time
            return


def _stamp(folder: pathlib.Path, shard: ShardInfo) -> list[list[int]]:
    stats = [path.stat() for path in shard.paths(folder)]
    return [[status.st_size, status.st_mtime_ns] for status in stats]
