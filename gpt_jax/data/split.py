"""The split of a corpus into training and validation text.

`hash:F` puts about a fraction F of the documents into validation, chosen by a hash of the content:
adding documents moves no others. `tail:F` takes the end, as nanoGPT does. With one document, it
takes the characters from int(n * (1 - F)) on. With several, it takes the documents that begin in
the last fraction F of the bytes, or the last document if none does. F = 0 keeps everything for
training. For a single document, `hash:F` becomes `tail:F`.
"""

import dataclasses
import enum
import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gpt_jax.data.documents import Piece
from gpt_jax.errors import UserError

TRAIN = 'train'
VALIDATION = 'validation'
SPLITS = (TRAIN, VALIDATION)


class SplitKind(enum.StrEnum):
    """The ways to choose text for validation."""

    HASH = 'hash'
    TAIL = 'tail'


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """A parsed `config.data.split`."""

    kind: SplitKind
    fraction: float

    def __str__(self) -> str:
        return f'{self.kind}:{self.fraction}'


class Part(NamedTuple):
    """A piece of text and its split."""

    split: str
    piece: Piece
    num_bytes: int


class Survey(NamedTuple):
    """The size of a whole corpus."""

    documents: int
    characters: int
    num_bytes: int


def parse_split(text: str) -> SplitRule:
    """Reads 'hash:0.01' or 'tail:0.1'.

    Raises:
        UserError: it is neither, or the fraction is not in [0, 1).
    """
    kind, _, number = text.partition(':')
    try:
        rule = SplitRule(SplitKind(kind), float(number))
    except ValueError:
        rule = None
    if rule is None or not 0 <= rule.fraction < 1:
        raise UserError(
            f'config.data.split={text!r} must be hash:F or tail:F with 0 <= F < 1, '
            'such as hash:0.01 or tail:0.1'
        )
    return rule


def survey(pieces: Iterable[Piece]) -> Survey:
    """Counts documents, characters and bytes of a corpus."""
    documents = characters = num_bytes = 0
    for piece in pieces:
        documents += piece.starts_document
        characters += len(piece.text)
        num_bytes += count_bytes(piece.text)
    return Survey(documents, characters, num_bytes)


def split_pieces(
    pieces: Iterable[Piece], rule: SplitRule, size: Survey | None = None
) -> Iterator[Part]:
    """Assigns every piece to a split; `tail` may cut a piece of a single document in two.

    Args:
      pieces: all pieces of a corpus, in order.
      rule: the split.
      size: of the whole corpus; `tail` needs it.
    """
    if rule.fraction == 0:
        for piece in pieces:
            yield Part(TRAIN, piece, count_bytes(piece.text))
    elif rule.kind is SplitKind.HASH:
        yield from _by_hash(pieces, rule.fraction)
    elif size.documents == 1:
        yield from _by_characters(pieces, int(size.characters * (1 - rule.fraction)))
    else:
        yield from _by_bytes(pieces, size, rule.fraction)


def count_bytes(text: str) -> int:
    """Returns the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode('utf-8'))


def _by_hash(pieces: Iterable[Piece], fraction: float) -> Iterator[Part]:
    split = TRAIN
    for piece in pieces:
        data = piece.text.encode('utf-8')
        if piece.starts_document:  # the first piece decides for the whole document
            number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')
            split = VALIDATION if number < fraction * 2**64 else TRAIN
        yield Part(split, piece, len(data))


def _by_characters(pieces: Iterable[Piece], cut: int) -> Iterator[Part]:
    start = 0
    for piece in pieces:
        if piece.segments is not None:  # conversations are never cut
            yield Part(TRAIN, piece, count_bytes(piece.text))
            continue
        head, tail = piece.text[: max(0, cut - start)], piece.text[max(0, cut - start) :]
        if head:
            yield Part(TRAIN, Piece(head, start == 0), count_bytes(head))
        if tail:
            yield Part(VALIDATION, Piece(tail, start <= cut), count_bytes(tail))
        start += len(piece.text)


def _by_bytes(pieces: Iterable[Piece], size: Survey, fraction: float) -> Iterator[Part]:
    cut, start, documents, split = size.num_bytes * (1 - fraction), 0, 0, TRAIN
    for piece in pieces:
        if piece.starts_document:
            documents += 1
            split = VALIDATION if start >= cut or documents == size.documents else TRAIN
        num_bytes = count_bytes(piece.text)
        yield Part(split, piece, num_bytes)
        start += num_bytes
