"""Verification of shards on disk against the hashes of their manifest.

Small shards are hashed whenever they are opened; large ones once, and again when their size or date
changes.
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
    """Checks that shards match the manifest of their folder.

    Raises:
        UserError: a shard differs; the message names the first one.
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
    """Returns whether a shard has its hash; a large one may have the verified size and date."""
    try:
        stamp = _stamp(folder, shard)
        if stamp[0][0] >= locations.REMEMBERED_BYTES and verified.get(shard.name) == stamp:
            return True
        return shard.content_hash(folder) == shard.sha256
    except OSError:
        return False


def read_verified(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the sizes and dates of verified shards; {} if there is no record."""
    try:
        return dict(json.loads((folder / VERIFIED).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def remember(folder: pathlib.Path, shards: Iterable[ShardInfo], verified: dict[str, Any]) -> None:
    """Records the sizes and dates of verified shards; does nothing in a read-only folder."""
    stamps = verified | {shard.name: _stamp(folder, shard) for shard in shards}
    if stamps != verified:
        try:
            files.write_json(folder / VERIFIED, stamps)
        except UserError:  # the shards are hashed again next time
            return


def _stamp(folder: pathlib.Path, shard: ShardInfo) -> list[list[int]]:
    stats = [path.stat() for path in shard.paths(folder)]
    return [[status.st_size, status.st_mtime_ns] for status in stats]
