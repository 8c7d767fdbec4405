"""Readers that yield the documents of an open file of any size.

A reader yields pieces of text in order. Only text files are cut into several pieces, and only
documents of more than PIECE_CHARS characters, so that memory stays bounded. The cut is at a line
end where BPE's pre-tokenizer splits anyway, so the ids equal those of the uncut document.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gpt_jax import files
from gpt_jax.data.config import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer, chat_template
from gpt_jax.tokenizer.chat_template import ChatTemplate, Segment

CHUNK_BYTES = 2**22
PIECE_CHARS = 2**22
_LAST_LINE_END = re.compile(r'.*\S(\n)(?=\S)', re.DOTALL)
_LINE_END_SEARCH_CHARS = 2**16
COMPRESSED_SUFFIXES = ('.gz', '.zst')  # of files that are decompressed as they are read


class Piece(NamedTuple):
    """Text that is encoded on its own: a document, or the next part of a long one."""

    text: str
    starts_document: bool = True
    segments: tuple[Segment, ...] | None = None  # of a conversation, encoded one by one


def begin_document(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids to put before a document: the begin-of-text token, as before a prompt.

    Empty if the same token ends texts, since it is between documents already. Also empty for
    tokenizers made here, which have none.
    """
    begins = tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.eot_id
    return np.array([tokenizer.bos_id] if begins else [], np.uint32)


# The text of a row, or the error that says why the row is bad.
Row = Piece | UserError
Reader = Callable[[BinaryIO, pathlib.Path, DataConfig], Iterator[Row]]


class SkippedRows:
    """The bad rows that a corpus skipped: their number, and the errors of the first ones."""

    MOST_LISTED = 10

    def __init__(self):
        self.count = 0
        self.first: list[str] = []

    def __str__(self) -> str:
        rows = [f'bad rows left out: {self.count:,}', *self.first]
        return '\n  '.join(rows + ['…'] * (self.count > len(self.first)))

    def leave_out(self, rows: Iterable[Row], config: DataConfig) -> Iterator[Piece]:
        """Yields the good rows and records the bad ones.

        Raises:
            UserError: a row is bad and `config.skip_bad_rows` is off.
        """
        for row in rows:
            if not isinstance(row, UserError):
                yield row
                continue
            if not config.skip_bad_rows:
                raise UserError(
                    f'{row}, or leave out such rows with config.data.skip_bad_rows=True'
                ) from row
            self.count += 1
            if self.count <= self.MOST_LISTED:
                self.first.append(str(row))


def read_text(file: BinaryIO, path: pathlib.Path, config: DataConfig) -> Iterator[Piece]:
    """Reads UTF-8 text: one document, or several separated by the literal `config.separator`.

    The separator and the line ends around it belong to no document. The rest is kept byte for byte
    as `files.TextDecoder` returns it, which drops a byte-order mark at the start.
    """
    yield from cut_documents(_decode(file, path), config.separator)


def read_jsonl(file: BinaryIO, path: pathlib.Path, config: DataConfig) -> Iterator[Row]:
    """Reads one JSON object per line; the document is in its field `config.text_field`."""
    yield from text_rows(json_lines(file, path), config.text_field)


def read_chats(
    file: BinaryIO, path: pathlib.Path, config: DataConfig, *, template: ChatTemplate
) -> Iterator[Row]:
    """Reads one JSON object per line; the conversation is in its field `messages`."""

    def to_piece(record: Any, where: str) -> Piece:
        messages = record.get('messages') if isinstance(record, dict) else None
        try:
            segments = tuple(template.segments(messages))
        except UserError as error:
            raise UserError(f'{where}: {error}') from error
        if not any(segment.learned for segment in segments):
            raise UserError(f'{where} has no message of the assistant to learn from; remove it')
        return Piece(chat_template.to_text(segments), segments=segments)

    yield from _rows(json_lines(file, path), to_piece)


def read_parquet(file: BinaryIO, path: pathlib.Path, config: DataConfig) -> Iterator[Row]:
    """Reads one document per row, from the column `config.text_field`."""
    yield from text_rows(_parquet_records(file, path, config.text_field), config.text_field)


def text_rows(records: Iterable[tuple[str, Any]], field: str) -> Iterator[Row]:
    """Yields the documents in one field of (location, record) pairs."""

    def to_piece(record: Any, where: str) -> Piece | None:
        text = text_of(record, field, where=where)
        return Piece(text) if text else None

    yield from _rows(records, to_piece)


def json_lines(file: BinaryIO, name: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """Yields (location, JSON value) of each line of a file; blank lines are skipped.

    For a line that is not UTF-8 or not JSON, the value is the UserError.
    """
    decoder = files.TextDecoder()
    for number, line in enumerate(file, start=1):
        where = f'{name}, line {number}'
        try:
            text = decoder.decode(line, name=where, final=True)
            if text.strip():
                yield where, _parse(text, where)
        except UserError as error:
            yield where, error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where} is not valid JSON ({error}); correct it') from error


def _parquet_records(
    file: BinaryIO, path: pathlib.Path, field: str
) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Yields (location, row) of a table; only the column `field` is read."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_package('pyarrow', 'config.data.corpus=parquet') from error
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if field not in names:
            raise _no_field(field, names, where=str(path))
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[field]):
            for value in batch.column(0):
                number += 1
                where = f'{path}, row {number}'
                try:
                    yield where, {field: value.as_py()}
                except UnicodeDecodeError:
                    yield where, UserError(f'{where}: the text is not UTF-8; correct it')
    except ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'{path} is not a readable parquet file ({reason})') from error


def _rows(
    records: Iterable[tuple[str, Any]], to_piece: Callable[[Any, str], Piece | None]
) -> Iterator[Row]:
    """Yields the pieces that `to_piece(record, where)` returns, or the UserErrors it raises."""
    for where, record in records:
        try:
            row = record if isinstance(record, UserError) else to_piece(record, where)
        except UserError as error:
            row = error
        if row is not None:
            yield row


def cut_documents(chunks: Iterable[str], separator: str) -> Iterator[Piece]:
    """Yields the documents of a text stream: long ones in several pieces, without empty ones.

    Args:
      chunks: the text, cut at arbitrary places.
      separator: the string between two documents; its line ends match LF and CR LF. '': the text
        is one document.
    """
    strip = '\r\n' if separator else ''
    lines = separator.replace('\r\n', '\n').split('\n')
    pattern = re.compile(r'\r?\n'.join(map(re.escape, lines)))
    longest = len('\r\n'.join(lines))
    rest, starts_document = '', True
    for chunk in chunks:
        rest += chunk
        if separator:
            *whole, rest = pattern.split(rest)
            for text in whole:
                text = text.lstrip(strip) if starts_document else text
                text = text.rstrip(strip)
                if text:
                    yield Piece(text, starts_document)
                starts_document = True
        # The margin avoids a cut inside a separator at the end of `rest`.
        while len(rest) >= PIECE_CHARS + longest:
            text, rest = _cut_at_line_end(rest)
            text = text.lstrip(strip) if starts_document else text
            if text:
                yield Piece(text, starts_document)
                starts_document = False
    rest = rest.lstrip(strip) if starts_document else rest
    rest = rest.rstrip(strip)
    if rest:
        yield Piece(rest, starts_document)


def text_of(record: Any, field: str, *, where: str) -> str:
    """Returns the text in one field of a record; '' for null.

    Raises:
        UserError: the record has no such field, or the field holds no valid text.
    """
    if not isinstance(record, dict):
        raise UserError(
            f'{where} is not a JSON object; each line must be one, such as {{"text": …}}'
        )
    if field not in record:
        raise _no_field(field, record, where=where)
    text = record[field]
    if text is None:
        return ''
    if not isinstance(text, str):
        raise UserError(
            f'{where}: the field {field!r} holds {type(text).__name__}, not text; '
            'name another with config.data.text_field'
        )
    try:
        text.encode('utf-8')
    except UnicodeEncodeError as error:
        raise UserError(f'{where}: the text has half a surrogate pair; correct it') from error
    return text


def missing_package(package: str, needed_by: str) -> UserError:
    """Returns the error for an optional package that is not installed."""
    return UserError(f'{needed_by} needs the package {package}: pip install {package}')


def _no_field(field: str, names: Iterable[str], *, where: str) -> UserError:
    return UserError(
        f'{where} has no field {field!r}; set config.data.text_field to one of: '
        + ', '.join(map(str, names))
    )


def _decode(file: BinaryIO, path: pathlib.Path) -> Iterator[str]:
    decoder, is_end = files.TextDecoder(), False
    while not is_end:
        chunk = file.read(CHUNK_BYTES)
        is_end = not chunk
        if text := decoder.decode(chunk, name=path, final=is_end):
            yield text


def _cut_at_line_end(text: str) -> tuple[str, str]:
    """Cuts before PIECE_CHARS after a newline between two visible characters, if there is one."""
    start = max(0, PIECE_CHARS - _LINE_END_SEARCH_CHARS)
    match = _LAST_LINE_END.match(text, start, PIECE_CHARS)
    cut = match.end(1) if match else PIECE_CHARS
    return text[:cut], text[cut:]
