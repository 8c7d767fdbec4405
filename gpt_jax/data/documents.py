"""Readers: from an open file to the documents in it, whatever the file's size.

A reader yields pieces of text in order. Only text files are cut into several pieces, and only
documents of more than PIECE_CHARS characters, so that memory stays bounded; the cut is at a line
end where BPE's split into words has a boundary anyway, so that BPE gives the ids of the whole.
"""

import codecs
import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gpt_jax.data.config import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer, chat_template
from gpt_jax.tokenizer.chat_template import ChatTemplate, Segment

CHUNK_BYTES = 2**22
PIECE_CHARS = 2**22
_LAST_LINE_END = re.compile(r'.*\S(\n)(?=\S)', re.DOTALL)
_LINE_END_SEARCH_CHARS = 2**16
COMPRESSED_SUFFIXES = ('.gz', '.zst')  # of files that are decompressed as they are read
# How files begin that people take for texts.
NOT_TEXT = {
    b'%PDF': 'a PDF',
    b'PK\x03\x04': 'a zip archive (as .docx, .odt and .epub are)',
    b'\x1f\x8b': 'compressed by gzip (its name does not end in .gz)',
    b'\x28\xb5\x2f\xfd': 'compressed by zstd (its name does not end in .zst)',
    b'\xfd7zXZ': 'compressed by xz',
    b'BZh': 'compressed by bzip2',
    b'\x89PNG': 'a PNG image',
    b'\xff\xd8\xff': 'a JPEG image',
    b'PAR1': 'a parquet file (config.data.corpus=parquet)',
    b'\xd0\xcf\x11\xe0': 'an old Office document',
}


class Piece(NamedTuple):
    """Text that is encoded on its own: a document, or the next part of a long one."""

    text: str
    starts_document: bool = True
    segments: tuple[Segment, ...] | None = None  # of a conversation: the text, encoded so


def begin_document(tokenizer: Tokenizer) -> np.ndarray:
    """What stands before a document: the token that begins texts, as before a prompt.

    Where it also ends texts it stands between documents already. Tokenizers made here have none.
    """
    begins = tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.eot_id
    return np.array([tokenizer.bos_id] if begins else [], np.uint32)


Reader = Callable[[BinaryIO, pathlib.Path, DataConfig], Iterator[Piece]]


def read_text(file: BinaryIO, path: pathlib.Path, config: DataConfig) -> Iterator[Piece]:
    """A UTF-8 text: one document, or several parted by the literal `config.separator`.

    The separator and the newlines around it belong to no document. Without one the text is kept
    to the last byte, but for a byte-order mark at its start.
    """
    yield from cut_documents(_decode(file, path), config.separator)


def read_jsonl(file: BinaryIO, path: pathlib.Path, config: DataConfig) -> Iterator[Piece]:
    """One JSON object a line, the document in its field `config.text_field`."""
    for where, record in _records(file, path):
        text = text_of(record, config.text_field, where=where)
        if text:
            yield Piece(text)


def read_chats(
    file: BinaryIO, path: pathlib.Path, config: DataConfig, *, template: ChatTemplate
) -> Iterator[Piece]:
    """One JSON object a line, the conversation in its field `messages`."""
    for where, record in _records(file, path):
        messages = record.get('messages') if isinstance(record, dict) else None
        try:
            segments = tuple(template.segments(messages))
        except UserError as error:
            raise UserError(f'{where}: {error}') from error
        if not any(segment.learned for segment in segments):
            raise UserError(f'{where} has no message of the assistant to learn from; remove it')
        yield Piece(chat_template.to_text(segments), segments=segments)


def _records(file: BinaryIO, path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """The JSON values of a file's lines, and where each of them is."""
    offset = 0
    for number, line in enumerate(file, start=1):
        where = f'{path}, line {number}'
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip():
            try:
                record = json.loads(content.decode('utf-8'))
            except UnicodeDecodeError as error:
                raise not_utf8(path, offset + len(line) - len(content) + error.start) from error
            except (ValueError, RecursionError) as error:
                raise UserError(f'{where} is not valid JSON ({error}); correct it') from error
            yield where, record
        offset += len(line)


def read_parquet(file: BinaryIO, path: pathlib.Path, config: DataConfig) -> Iterator[Piece]:
    """One row a document, in the column `config.text_field`."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_package('pyarrow', 'config.data.corpus=parquet') from error
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if config.text_field not in names:
            raise _no_field(config.text_field, names, where=str(path))
        for batch in table.iter_batches(batch_size=1024, columns=[config.text_field]):
            for record in batch.to_pylist():
                text = text_of(record, config.text_field, where=str(path))
                if text:
                    yield Piece(text)
    except ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'{path} is not a readable parquet file ({reason})') from error


def cut_documents(chunks: Iterable[str], separator: str) -> Iterator[Piece]:
    """The documents in a stream of text, the long ones in several pieces, the empty ones left out.

    Args:
      chunks: the text, cut anywhere.
      separator: the string between two documents; '' when all is one document.
    """
    strip = '\n' if separator else ''
    rest, starts_document = '', True
    for chunk in chunks:
        rest += chunk
        if separator:
            *whole, rest = rest.split(separator)
            for text in whole:
                text = text.lstrip(strip) if starts_document else text
                text = text.rstrip(strip)
                if text:
                    yield Piece(text, starts_document)
                starts_document = True
        # The margin keeps half a separator at the end of `rest` together.
        while len(rest) >= PIECE_CHARS + len(separator):
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
    """The text in one field of a record; '' for null.

    Raises:
        UserError: the record has no such field, or it holds no valid text.
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


def not_utf8(path: pathlib.Path, offset: int) -> UserError:
    """The error for bytes that are not UTF-8, `offset` counted in bytes from the file's start."""
    encoding = 'LATIN1'
    if path.suffix not in COMPRESSED_SUFFIXES:
        with contextlib.suppress(OSError), open(path, 'rb') as file:
            head = file.read(16)
            for mark, kind in NOT_TEXT.items():
                if head.startswith(mark):
                    return UserError(f'{path} is {kind} and not text; give the text that is in it')
            if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                encoding = 'UTF-16'
    return UserError(
        f'{path} is not UTF-8 at byte {offset}; convert it, for example with '
        f'iconv -f {encoding} -t UTF-8'
    )


def missing_package(package: str, needed_by: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f'{needed_by} needs the package {package}: pip install {package}')


def _no_field(field: str, names: Iterable[str], *, where: str) -> UserError:
    return UserError(
        f'{where} has no field {field!r}; set config.data.text_field to one of: '
        + ', '.join(map(str, names))
    )


def _decode(file: BinaryIO, path: pathlib.Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder('utf-8')()
    offset = 0  # of the next chunk in the file
    while True:
        chunk = file.read(CHUNK_BYTES)
        held = len(decoder.getstate()[0])  # bytes of a character that the last chunk began
        skipped = len(codecs.BOM_UTF8) if offset == 0 and chunk.startswith(codecs.BOM_UTF8) else 0
        try:
            text = decoder.decode(chunk[skipped:], final=not chunk)
        except UnicodeDecodeError as error:
            raise not_utf8(path, offset + skipped - held + error.start) from error
        if text:
            yield text
        if not chunk:
            return
        offset += len(chunk)


def _cut_at_line_end(text: str) -> tuple[str, str]:
    """Cuts before PIECE_CHARS after a newline between two visible characters, if there is one."""
    start = max(0, PIECE_CHARS - _LINE_END_SEARCH_CHARS)
    match = _LAST_LINE_END.match(text, start, PIECE_CHARS)
    cut = match.end(1) if match else PIECE_CHARS
    return text[:cut], text[cut:]
