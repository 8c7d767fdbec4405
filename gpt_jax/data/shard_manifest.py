"""The manifest.json of a folder of prepared shards; it is written last.

Without a manifest the shards are not finished, and nothing reads them. The folder also has:
 - NAME.tokens per shard: little-endian uint16 or uint32.
 - NAME.documents per shard: little-endian int64, the starts of documents, in tokens from the
   shard's start.
 - NAME.json per shard: its ShardInfo, written after the other files. An interrupted preparation
   resumes from it.
 - NAME.spans per shard, if only some tokens are learned, as in conversations: begin and end of each
   run of learned tokens (little-endian int64).
 - tokenizer/: the tokenizer that made the tokens.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, Self

from gpt_jax import files
from gpt_jax.errors import UserError

MANIFEST = 'manifest.json'
TOKENIZER = 'tokenizer'
VERSION = 1
OFFSET_DTYPE = '<i8'
_CHUNK_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard: a run of a split's tokens."""

    name: str  # of its files, without the suffix
    tokens: int
    documents: int  # that begin in the shard
    num_bytes: int  # of text in UTF-8
    pieces: int  # of text, each encoded separately
    sha256: str  # of NAME.tokens followed by NAME.documents and NAME.spans
    spans: int | None = None  # runs of learned tokens; None: all tokens are learned

    def tokens_path(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / f'{self.name}.tokens'

    def documents_path(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / f'{self.name}.documents'

    def spans_path(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / f'{self.name}.spans'

    def paths(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Returns the files of the shard, without its record NAME.json."""
        paths = [self.tokens_path(folder), self.documents_path(folder)]
        return paths if self.spans is None else [*paths, self.spans_path(folder)]

    def content_hash(self, folder: pathlib.Path) -> str:
        """Computes the SHA-256 of the shard's files. Raises OSError if a file is missing."""
        digest = hashlib.sha256()
        for path in self.paths(folder):
            with open(path, 'rb') as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def check_sizes(self, folder: pathlib.Path, token_bytes: int) -> None:
        """Checks the sizes of the shard's files.

        Raises:
            UserError: a file is missing, too short or too long; the message names it.
        """
        sizes = [self.tokens * token_bytes, self.documents * 8, (self.spans or 0) * 16]
        for path, size in zip(self.paths(folder), sizes, strict=False):
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise UserError(
                    f'{path} has {"no" if found is None else found} bytes where its manifest says '
                    f'{size}; delete {folder} and prepare it again'
                )


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split: its shards in order, and their sums."""

    tokens: int
    documents: int
    num_bytes: int
    shards: tuple[ShardInfo, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a folder of prepared shards."""

    version: int
    corpus: str  # readable name
    identity: str  # hash of everything that determines the content, with source and tokenizer
    source_fingerprint: str
    split_rule: str
    tokenizer_kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    eot_id: int | None
    dtype: str  # of the tokens, as numpy writes it
    splits: dict[str, SplitInfo]
    skipped_rows: int = 0  # bad rows, skipped because of config.data.skip_bad_rows
    first_skipped: tuple[str, ...] = ()  # errors of the first of them, with their locations

    @classmethod
    def read(cls, folder: pathlib.Path, *, check_files: bool = True) -> Self:
        """Reads the manifest of a folder; with `check_files`, also checks the sizes of its files.

        Raises:
            UserError: there is none, it is damaged or has another version, or a file has the wrong
                size.
        """
        path = folder / MANIFEST
        stored = files.read_json(path)
        version = stored.get('version') if isinstance(stored, dict) else None
        if version != VERSION:
            raise UserError(
                f'{path} has version {version}, this program reads {VERSION}; '
                f'delete {folder} and prepare it again'
            )
        try:
            splits = {name: _read_split(split) for name, split in stored.pop('splits').items()}
            first_skipped = tuple(stored.pop('first_skipped', ()))
            manifest = cls(splits=splits, first_skipped=first_skipped, **stored)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{path} is damaged ({error}); delete {folder} and prepare it again'
            ) from error
        token_bytes = token_dtype_bytes(manifest.dtype)
        for split in manifest.splits.values() if check_files else ():
            for shard in split.shards:
                shard.check_sizes(folder, token_bytes)
        return manifest

    def write(self, folder: pathlib.Path) -> None:
        """Writes manifest.json, after which the folder can be read."""
        files.write_json(folder / MANIFEST, dataclasses.asdict(self))


def is_prepared(source: str | pathlib.Path) -> bool:
    """Returns whether `source` is a folder of finished shards."""
    return (pathlib.Path(source).expanduser() / MANIFEST).is_file()


def sum_shards(shards: list[ShardInfo]) -> SplitInfo:
    """Returns the split that consists of these shards."""
    return SplitInfo(
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        shards=tuple(shards),
    )


def token_dtype(vocab_size: int) -> str:
    """Returns the smallest dtype that holds every id: uint16 for up to 65,536 ids."""
    return '<u2' if vocab_size <= 2**16 else '<u4'


def token_dtype_bytes(dtype: str) -> int:
    """Returns the bytes per token."""
    return int(dtype[-1])


def hash_of(value: Any) -> str:
    """Returns the SHA-256 of a JSON value; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode('utf-8')).hexdigest()


def _read_split(stored: dict[str, Any]) -> SplitInfo:
    shards = tuple(ShardInfo(**shard) for shard in stored.pop('shards'))
    return SplitInfo(shards=shards, **stored)
