"""manifest.json of prepared shards: what is in the folder. It is written last, so no manifest means
that the shards are not finished, and nothing reads them.

Beside it stand, for every shard, NAME.tokens (little-endian uint16 or uint32), NAME.documents
(little-endian int64: where documents begin, in tokens from the shard's start) and NAME.json (this
shard's ShardInfo, written after the others: the record that lets an interrupted preparation go on);
and tokenizer/, the tokenizer that made the tokens. Where only some tokens are learned, as of
conversations, NAME.spans has begin and end of each run of them (little-endian int64).
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
    documents: int  # that begin in it
    num_bytes: int  # of text in UTF-8
    pieces: int  # of text that were encoded one by one
    sha256: str  # of NAME.tokens followed by NAME.documents and NAME.spans
    spans: int | None = None  # runs of tokens that are learned; None: all tokens are

    def tokens_path(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / f'{self.name}.tokens'

    def documents_path(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / f'{self.name}.documents'

    def spans_path(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / f'{self.name}.spans'

    def paths(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """The files of the shard, without its record."""
        paths = [self.tokens_path(folder), self.documents_path(folder)]
        return paths if self.spans is None else [*paths, self.spans_path(folder)]

    def content_hash(self, folder: pathlib.Path) -> str:
        """What `sha256` must be of the files in a folder. Raises OSError if they are not there."""
        digest = hashlib.sha256()
        for path in self.paths(folder):
            with open(path, 'rb') as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def check_sizes(self, folder: pathlib.Path, token_bytes: int) -> None:
        """Refuses a shard whose files are missing, cut short or too long.

        Raises:
            UserError: naming the file.
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
    """What a folder of prepared shards holds."""

    version: int
    corpus: str  # readable name
    identity: str  # hash of everything that decides the content, source and tokenizer included
    source_fingerprint: str
    split_rule: str
    tokenizer_kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    eot_id: int | None
    dtype: str  # of the tokens, as numpy writes it
    splits: dict[str, SplitInfo]
    skipped_rows: int = 0  # bad ones, left out by config.data.skip_bad_rows
    first_skipped: tuple[str, ...] = ()  # where the first of them are, and what is wrong

    @classmethod
    def read(cls, folder: pathlib.Path, *, check_files: bool = True) -> Self:
        """Reads a folder's manifest and, if told to, checks the sizes of the files that it lists.

        Raises:
            UserError: there is none, it is damaged or of another version, or a file is torn.
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
        """Writes manifest.json: from here on the folder can be read."""
        files.write_json(folder / MANIFEST, dataclasses.asdict(self))


def is_prepared(source: str | pathlib.Path) -> bool:
    """Whether `source` is a folder of shards that are finished."""
    return (pathlib.Path(source).expanduser() / MANIFEST).is_file()


def sum_shards(shards: list[ShardInfo]) -> SplitInfo:
    """A split made of these shards."""
    return SplitInfo(
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        shards=tuple(shards),
    )


def token_dtype(vocab_size: int) -> str:
    """The smallest type that holds every id: uint16 up to 65,536 ids."""
    return '<u2' if vocab_size <= 2**16 else '<u4'


def token_dtype_bytes(dtype: str) -> int:
    """Bytes a token."""
    return int(dtype[-1])


def hash_of(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode('utf-8')).hexdigest()


def _read_split(stored: dict[str, Any]) -> SplitInfo:
    shards = tuple(ShardInfo(**shard) for shard in stored.pop('shards'))
    return SplitInfo(shards=shards, **stored)
