"""A reader of one split: its tokens as one long sequence over all files."""

import bisect
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from gpt_jax.data import bin_files
from gpt_jax.data.shard_manifest import (
    MANIFEST,
    OFFSET_DTYPE,
    TOKENIZER,
    Manifest,
    hash_of,
    is_prepared,
)
from gpt_jax.data.verified import check_shards
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer

_CHECKED_TOKENS = 2**20  # at the start of each file without a manifest


class Shards:
    """The tokens of one split, memory-mapped.

    Documents are separated by the end-of-text token, which counts as the first token of the next
    document. So the beginning of a text is learned from this token alone (and the begin-of-text
    token, if there is one). The end-of-text token itself is learned from the text before it.

    Attributes:
      name: the folder and the split, for error messages.
      num_tokens: the number of tokens.
      fingerprint: a hash of the content, the same on every machine.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        *,
        name: str,
        fingerprint: str,
        count_bytes: Callable[[], int],
        eot_id: int | None,
        offsets: Sequence[np.ndarray] | None = None,
        spans: Sequence[np.ndarray] | None = None,
    ):
        """Takes the tokens; `name` and `fingerprint` are the attributes.

        Args:
          arrays: the tokens, cut at arbitrary places.
          name: see above.
          fingerprint: see above.
          count_bytes: returns the length of the text in UTF-8.
          eot_id: the token that begins a document if `offsets` is None.
          offsets: per array, the starts of documents, ascending.
          spans: per array, the bounds of its learned runs, ascending: begin, end, begin, …; None:
            all tokens are learned.
        """
        self._arrays, self._offsets, self._spans = list(arrays), offsets, spans
        self._starts = np.cumsum([0, *map(len, arrays)]).tolist()
        self._count_bytes, self._eot_id = count_bytes, eot_id
        self.name, self.fingerprint = name, fingerprint
        self.num_tokens: int = self._starts[-1]

    @classmethod
    def open(
        cls, source: str | pathlib.Path, split: str, *, tokenizer: Tokenizer | None = None
    ) -> Self:
        """Opens a prepared folder, nanoGPT's or llm.c's .bin files.

        Args:
          source: the folder; for .bin files also a glob or one file.
          split: 'train' or 'validation'.
          tokenizer: the tokenizer of the run, to check that it made these tokens. Files without a
            manifest need it for its end-of-text id.

        Raises:
            UserError: there are no shards, a file is truncated, or the tokenizer differs.
        """
        if is_prepared(source):
            return cls._open_prepared(pathlib.Path(source).expanduser(), split, tokenizer)
        if tokenizer is None:
            raise UserError(f'{source} has no {MANIFEST}; reading its tokens needs a tokenizer')
        return cls._open_existing(source, split, tokenizer)

    @classmethod
    def from_tokens(
        cls, tokens: np.ndarray, *, name: str, num_bytes: int, eot_id: int | None
    ) -> Self:
        """Wraps tokens in memory, for example those of a text that is only evaluated."""
        return cls(
            [tokens],
            name=name,
            fingerprint=bin_files.sampled_fingerprint([tokens]),
            count_bytes=lambda: num_bytes,
            eot_id=eot_id,
        )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens [start, stop) as a new int32 array."""
        first = bisect.bisect_right(self._starts, start) - 1
        if stop <= self._starts[first + 1]:
            base = self._starts[first]
            return self._arrays[first][start - base : stop - base].astype(np.int32)
        last = bisect.bisect_left(self._starts, stop)
        parts = [
            self._arrays[i][max(0, start - self._starts[i]) : stop - self._starts[i]]
            for i in range(first, last)
        ]
        return np.concatenate(parts).astype(np.int32)

    def segment_ids(self, start: int, stop: int) -> np.ndarray:
        """Returns the document number of tokens [start, stop), counted from 1; int32."""
        ids = np.empty(stop - start, np.int32)
        begin, number = 0, 1
        for edge in self._document_starts(start + 1, stop):
            ids[begin : edge - start] = number
            begin, number = edge - start, number + 1
        ids[begin:] = number
        return ids

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """The bounds of all documents `[n, 2]`, without the end-of-text tokens between them."""
        bases = zip(self._starts, self._arrays, strict=False)
        if self._offsets is not None:
            parts = [each + base for base, each in zip(self._starts, self._offsets, strict=False)]
        elif self._eot_id is not None:
            parts = [np.flatnonzero(array == self._eot_id) + base for base, array in bases]
        else:
            parts = []
        found = np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
        starts, stops = np.append(0, found[found > 0]), np.append(found[found > 0], self.num_tokens)
        if self._eot_id is not None:
            starts[1:] += 1
            starts[0] += self.read(0, 1)[0] == self._eot_id
        return np.stack([starts, stops], 1)

    @property
    def all_learned(self) -> bool:
        """True if `loss_mask` is 1 everywhere."""
        return self._spans is None

    def loss_mask(self, start: int, stop: int) -> np.ndarray:
        """Returns 1 for each learned token in [start, stop), 0 for the others; float32."""
        mask = np.ones(stop - start, np.float32)
        if self._spans is None:
            return mask
        for base, array, edges in zip(self._starts, self._arrays, self._spans, strict=False):
            low, high = max(start, base), min(stop, base + len(array))
            if low < high:
                inside = edges.searchsorted(np.arange(low - base, high - base), side='right') % 2
                mask[low - start : high - start] = inside
        return mask

    @property
    def num_bytes(self) -> int:
        """The length of the split's text in UTF-8, for bits per byte."""
        return self._count_bytes()

    def _document_starts(self, start: int, stop: int) -> list[int]:
        """Returns the positions in [start, stop) where documents begin, ascending."""
        if self._offsets is None:
            if start == stop or self._eot_id is None:
                return []
            return (np.flatnonzero(self.read(start, stop) == self._eot_id) + start).tolist()
        found = []
        shard = bisect.bisect_right(self._starts, start) - 1
        while shard < len(self._offsets) and (base := self._starts[shard]) < stop:
            offsets = self._offsets[shard]
            low, high = offsets.searchsorted(start - base), offsets.searchsorted(stop - base)
            found += (offsets[low:high] + base).tolist()
            shard += 1
        return found

    @classmethod
    def _open_prepared(cls, folder: pathlib.Path, split: str, tokenizer: Tokenizer | None) -> Self:
        manifest = Manifest.read(folder)
        if tokenizer is not None and tokenizer.fingerprint() != manifest.tokenizer_fingerprint:
            raise UserError(
                f'{folder} was made with another {manifest.tokenizer_kind} tokenizer than the run '
                f'has; set config.tokenizer.path={folder / TOKENIZER} or prepare the data again'
            )
        info = manifest.splits.get(split)
        if info is None or not info.tokens:
            raise UserError(
                f'{folder} has no {split} split (config.data.split={manifest.split_rule})'
            )
        check_shards(folder, info.shards)
        return cls(
            [_map(shard.tokens_path(folder), manifest.dtype) for shard in info.shards],
            name=f'{folder}, split {split}',
            fingerprint=hash_of(
                [manifest.identity, manifest.tokenizer_fingerprint, split, info.tokens]
            ),
            count_bytes=lambda: info.num_bytes,
            eot_id=manifest.eot_id,
            offsets=[_map(shard.documents_path(folder), OFFSET_DTYPE) for shard in info.shards],
            spans=None
            if any(shard.spans is None for shard in info.shards)
            else [_map(shard.spans_path(folder), OFFSET_DTYPE) for shard in info.shards],
        )

    @classmethod
    def _open_existing(cls, source: str | pathlib.Path, split: str, tokenizer: Tokenizer) -> Self:
        files = bin_files.find_token_files(source, split)
        arrays = [bin_files.open_token_file(path) for path in files]
        for path, array in zip(files, arrays, strict=True):
            largest = int(array[:_CHECKED_TOKENS].max())
            if largest >= tokenizer.vocab_size:
                raise _too_large_id(path, largest, tokenizer)
        return cls(
            arrays,
            name=f'{source}, split {split}',
            fingerprint=bin_files.sampled_fingerprint(arrays),
            count_bytes=lambda: _count_bytes(source, arrays, tokenizer),
            eot_id=tokenizer.eot_id,
        )


def _map(path: pathlib.Path, dtype: str) -> np.ndarray:
    # An empty file cannot be mapped. Slicing is twice as fast for a plain array as for a memmap.
    if not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, 'r'))


def _too_large_id(path: str | pathlib.Path, token_id: int, tokenizer: Tokenizer) -> UserError:
    return UserError(
        f'{path} has the token id {token_id}, but the {tokenizer.kind} tokenizer has only '
        f'{tokenizer.vocab_size} ids; set config.tokenizer.kind and .path to the one that made it'
    )


def _count_bytes(
    source: str | pathlib.Path, arrays: Sequence[np.ndarray], tokenizer: Tokenizer
) -> int:
    lengths = [len(tokenizer.id_to_bytes(i)) for i in range(tokenizer.vocab_size)]
    for special in tokenizer.special_tokens.values():
        lengths[special] = 0
    total = 0
    for array in arrays:
        for start in range(0, len(array), _CHECKED_TOKENS):
            counts = np.bincount(array[start : start + _CHECKED_TOKENS], minlength=len(lengths))
            if len(counts) > len(lengths):
                raise _too_large_id(source, len(counts) - 1, tokenizer)
            total += int(counts @ np.array(lengths, np.int64))
    return total
