"""Encoding of text in a background thread, while more text is read."""

import collections
import concurrent.futures
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from gpt_jax import object_store
from gpt_jax.data import documents
from gpt_jax.data.config import DataConfig
from gpt_jax.data.input_files import open_decompressed
from gpt_jax.data.shards import Shards
from gpt_jax.data.split import Part, count_bytes
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer, chat_template

_BATCH_BYTES = 2**23  # of text per call of the tokenizer, which spreads it over the cores
_BATCHES_AHEAD = 2


def encode_parts(
    parts: Iterable[Part], tokenizer: Tokenizer
) -> Iterator[list[tuple[Part, np.ndarray, np.ndarray | None]]]:
    """Yields batches of (part, ids, learned runs) in order, some MiB of text per batch.

    The learned runs of ids are `[n, 2]` (begin, end), or None if all ids are learned.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting: collections.deque = collections.deque()
        try:
            for batch in _batches(parts):
                waiting.append((batch, pool.submit(_encode, batch, tokenizer)))
                if len(waiting) > _BATCHES_AHEAD:
                    yield _take(waiting)
            while waiting:
                yield _take(waiting)
        finally:
            for _, ids in waiting:
                ids.cancel()


def encode_text_file(path: str | pathlib.Path, tokenizer: Tokenizer) -> Shards:
    """Encodes a UTF-8 text file (also .gz, .zst) in memory, for evaluation.

    Raises:
        UserError: the file is missing, empty or not UTF-8.
    """
    path, tokens, num_bytes = object_store.local_path(path, key='text'), [], 0
    beginning = documents.begin_document(tokenizer)
    with open_decompressed(path) as (_, file):
        for piece in documents.read_text(file, path, DataConfig()):
            tokens += tokenizer.encode_batch([piece.text])
            num_bytes += count_bytes(piece.text)
    if not tokens:
        raise UserError(f'{path} is empty; name a file with text')
    return Shards.from_tokens(
        np.concatenate([beginning, *tokens]),
        name=str(path),
        num_bytes=num_bytes,
        eot_id=tokenizer.eot_id,
    )


def _encode(
    batch: list[Part], tokenizer: Tokenizer
) -> list[tuple[Part, np.ndarray, np.ndarray | None]]:
    texts = [part.piece.text for part in batch if part.piece.segments is None]
    ids_of_texts = iter(tokenizer.encode_batch(texts))
    return [
        (part, next(ids_of_texts), None)
        if part.piece.segments is None
        else (part, *chat_template.encode(part.piece.segments, tokenizer))
        for part in batch
    ]


def _take(waiting: collections.deque) -> list[tuple[Part, np.ndarray, np.ndarray | None]]:
    _, encoded = waiting.popleft()
    return encoded.result()


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    batch, size = [], 0
    for part in parts:
        batch.append(part)
        size += part.num_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
