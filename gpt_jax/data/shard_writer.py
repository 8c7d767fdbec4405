"""A writer of the shards of one split; each shard is written completely or not at all."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from gpt_jax import files
from gpt_jax.data.documents import begin_document
from gpt_jax.data.shard_manifest import OFFSET_DTYPE, ShardInfo, SplitInfo, sum_shards
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer


class ShardWriter:
    """A writer that collects encoded pieces and writes a shard per `shard_tokens` or more tokens.

    The end of a shard depends only on the pieces. So a writer that finds finished shards in its
    folder keeps them and continues after them; see `skip_if_finished`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        split: str,
        *,
        dtype: str,
        tokenizer: Tokenizer,
        shard_tokens: int,
    ):
        self._folder, self._split = folder, split
        self._dtype, self._shard_tokens = np.dtype(dtype), shard_tokens
        self._beginning, self._eot_id = begin_document(tokenizer), tokenizer.eot_id
        self._shards = self._finished_shards()
        self._documents = sum(shard.documents for shard in self._shards)
        self._to_skip = sum(shard.pieces for shard in self._shards)
        self.tokens = sum(shard.tokens for shard in self._shards)
        self._clear()

    def skip_if_finished(self) -> bool:
        """Returns whether the next piece is in a finished shard; if so, do not `add` it."""
        self._to_skip -= 1
        return self._to_skip >= 0

    def add(
        self,
        ids: np.ndarray,
        *,
        starts_document: bool,
        num_bytes: int,
        spans: np.ndarray | None = None,
    ) -> None:
        """Appends one piece.

        Puts the end-of-text token before each document but the first, and the begin-of-text token
        before each document, if the tokenizer has them.

        `spans` `[n, 2]` are the runs of `ids` that are learned; None: all ids. Pass it for every
        piece or for none.

        Raises:
            UserError: a shard cannot be written.
        """
        if starts_document:
            self._offsets.append(self._num_tokens)
            if self._documents and self._eot_id is not None:
                self._append(np.array([self._eot_id]))
            if spans is None:  # else the chat template has written the beginning
                self._append(self._beginning)
            self._documents += 1
        if spans is not None:
            self._spans.append(spans + self._num_tokens)
        self._append(ids)
        self._num_bytes += num_bytes
        self._pieces += 1
        if self._num_tokens >= self._shard_tokens:
            self._write()

    def finish(self) -> SplitInfo:
        """Writes the last shard; returns the whole split.

        Raises:
            UserError: a shard cannot be written.
        """
        if self._pieces:
            self._write()
        return sum_shards(self._shards)

    def _append(self, ids: np.ndarray) -> None:
        self._parts.append(ids.astype(self._dtype))
        self._num_tokens += len(ids)
        self.tokens += len(ids)

    def _clear(self) -> None:
        self._parts: list[np.ndarray] = []
        self._offsets: list[int] = []
        self._spans: list[np.ndarray] = []
        self._num_tokens = self._num_bytes = self._pieces = 0

    def _write(self) -> None:
        tokens = np.concatenate(self._parts)
        offsets = np.array(self._offsets, OFFSET_DTYPE)
        arrays = [tokens, offsets]
        if self._spans:
            arrays.append(np.concatenate(self._spans).astype(OFFSET_DTYPE))
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array)
        shard = ShardInfo(
            name=self._name(len(self._shards)),
            tokens=len(tokens),
            documents=len(offsets),
            num_bytes=self._num_bytes,
            pieces=self._pieces,
            sha256=digest.hexdigest(),
            spans=len(arrays[2]) if self._spans else None,
        )
        for path, array in zip(shard.paths(self._folder), arrays, strict=True):
            with files.atomic_file(path) as file:
                file.write(array)
        files.write_json(self._record_path(shard.name), dataclasses.asdict(shard))
        self._shards.append(shard)
        self._clear()

    def _name(self, number: int) -> str:
        return f'{self._split}-{number:05d}'

    def _record_path(self, name: str) -> pathlib.Path:
        return self._folder / f'{name}.json'

    def _finished_shards(self) -> list[ShardInfo]:
        """Returns the shards of an interrupted preparation, up to the first damaged one."""
        shards: list[ShardInfo] = []
        while (path := self._record_path(self._name(len(shards)))).is_file():
            try:
                shard = ShardInfo(**files.read_json(path))
                shard.check_sizes(self._folder, self._dtype.itemsize)
            except (UserError, TypeError):
                break
            if shard.content_hash(self._folder) != shard.sha256:
                break
            shards.append(shard)
        return shards
