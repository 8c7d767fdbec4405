import io
import json
import pathlib

import numpy as np
import pytest

from gpt_jax import tokenizer as tokenizers
from gpt_jax.data import documents
from gpt_jax.data.config import DataConfig
from gpt_jax.data.documents import Piece
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind

PATH = pathlib.Path('corpus.txt')


def read_text(data: bytes, **settings) -> list[Piece]:
    return list(documents.read_text(io.BytesIO(data), PATH, DataConfig(**settings)))


def read_jsonl(data: bytes, **settings) -> list[str]:
    config = DataConfig(**settings)
    rows = documents.read_jsonl(io.BytesIO(data), PATH, config)
    return [piece.text for piece in documents.SkippedRows().leave_out(rows, config)]


def test_a_text_is_one_document_kept_to_the_byte():
    assert read_text('a\r\nb\n\n é'.encode()) == [Piece('a\r\nb\n\n é', True)]


def test_a_byte_order_mark_is_dropped():
    assert read_text(b'\xef\xbb\xbfabc') == [Piece('abc')]


def test_an_empty_text_has_no_document():
    assert read_text(b'') == []
    assert read_text(b'\xef\xbb\xbf') == []


@pytest.mark.parametrize('chunk_bytes', [4, 5, 7, 100])
def test_bytes_that_are_not_utf8_are_named_with_their_offset(monkeypatch, chunk_bytes):
    monkeypatch.setattr(documents, 'CHUNK_BYTES', chunk_bytes)
    with pytest.raises(UserError, match='corpus.txt is not UTF-8 at byte 9'):
        read_text(b'\xef\xbb\xbf\xc3\xa9\xe2\x82\xac.\xe9 b')
    with pytest.raises(UserError, match='not UTF-8 at byte 3'):  # half a character at the end
        read_text(b'abc\xe2\x82')


@pytest.mark.parametrize('chunk_bytes', [1, 2, 3, 8, 1000])
def test_a_separator_parts_documents_wherever_chunks_end(monkeypatch, chunk_bytes):
    monkeypatch.setattr(documents, 'CHUNK_BYTES', max(3, chunk_bytes))
    pieces = read_text('eins\n<|e|>\nzwei\n\nund\n<|e|>\n<|e|>é'.encode(), separator='<|e|>')
    assert pieces == [Piece('eins'), Piece('zwei\n\nund'), Piece('é')]


@pytest.mark.parametrize('separator', ['', '<|e|>'])
@pytest.mark.parametrize('chunk_bytes', [3, 16, 1000])
def test_a_long_document_is_cut_at_line_ends_and_loses_nothing(monkeypatch, separator, chunk_bytes):
    monkeypatch.setattr(documents, 'CHUNK_BYTES', chunk_bytes)
    monkeypatch.setattr(documents, 'PIECE_CHARS', 12)
    text = 'one two\n\nthree\nfour five six seven eight\nnine\nten'
    pieces = read_text(f'{text}{separator}'.encode(), separator=separator)
    assert ''.join(piece.text for piece in pieces) == text
    if chunk_bytes < 1000:
        assert [piece.starts_document for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        assert len(pieces) >= 4 and max(len(piece.text) for piece in pieces) <= 12 + chunk_bytes
        # Not behind a blank line: '\n\n' at the end of a text is another token of GPT-2.
        assert not any(piece.text.endswith('\n\n') for piece in pieces[:-1])


def test_gpt2_gives_the_ids_of_the_whole(monkeypatch, shared_data):
    text = (shared_data / 'corpora/tinyshakespeare/input.txt').read_text()[:50_000]
    tokenizer = tokenizers.make_tokenizer(
        TokenizerConfig(kind=TokenizerKind.BPE, path=str(shared_data / 'tokenizers/gpt2')), list
    )
    monkeypatch.setattr(documents, 'CHUNK_BYTES', 300)
    monkeypatch.setattr(documents, 'PIECE_CHARS', 500)
    pieces = [piece.text for piece in read_text(text.encode())]
    assert len(pieces) > 100
    ids = np.concatenate(tokenizer.encode_batch(pieces))
    assert np.array_equal(ids, tokenizer.encode(text))


@pytest.mark.parametrize('length', range(1, 30))
def test_a_separator_is_seen_wherever_pieces_end(monkeypatch, length):
    monkeypatch.setattr(documents, 'CHUNK_BYTES', 3)
    monkeypatch.setattr(documents, 'PIECE_CHARS', 12)
    pieces = read_text(b'x' * length + b'<|e|>tail', separator='<|e|>')
    assert ''.join(piece.text for piece in pieces) == 'x' * length + 'tail'
    assert pieces[-1] == Piece('tail')


def test_pieces_of_several_documents_keep_their_documents_apart(monkeypatch):
    monkeypatch.setattr(documents, 'CHUNK_BYTES', 5)
    monkeypatch.setattr(documents, 'PIECE_CHARS', 4)
    pieces = read_text(b'abcdefghijk|l|mnopqrst', separator='|')
    whole = []
    for piece in pieces:
        if piece.starts_document:
            whole.append('')
        whole[-1] += piece.text
    assert whole == ['abcdefghijk', 'l', 'mnopqrst'] and len(pieces) > 4


def test_jsonl_reads_the_field_and_skips_what_is_empty():
    lines = [{'text': 'a\nb'}, {'text': ''}, {'text': None}, {'text': 'é'}]
    data = '\n'.join(map(json.dumps, lines)).encode()
    assert read_jsonl(b'\xef\xbb\xbf' + data + b'\n\n') == ['a\nb', 'é']
    assert read_jsonl(b'{"body": "x"}', text_field='body') == ['x']


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (b'{"text": ', 'corpus.txt, line 2 is not valid JSON'),
        (b'{"text": "\xe9"}', 'corpus.txt, line 2 is not UTF-8 at byte 25'),
        (b'["a"]', 'line 2 is not a JSON object'),
        (b'{"body": "a", "id": 1}', "line 2 has no field 'text'.*text_field.*body, id"),
        (b'{"text": 3}', "line 2: the field 'text' holds int.*config.data.text_field"),
        (b'{"text": "\\ud800"}', 'line 2: .*surrogate'),
    ],
)
def test_a_bad_line_is_named(line, message):
    with pytest.raises(UserError, match=message) as caught:
        read_jsonl(b'{"text":"abc"}\n' + line)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (b'%PDF-1.7\n%\xe2\xe3\xcf\xd3', 'is a PDF and not text'),
        (b'%PDF-1.4\nall of it ASCII', 'is a PDF and not text'),
        (b'PK\x03\x04\x14\x00\xff', 'is a zip archive .* and not text'),
        (b'\x1f\x8b\x08\x00', r'is compressed by gzip \(its name does not end in .gz\)'),
        ('Grüße'.encode('utf-16'), 'not UTF-8 at byte 0; .*iconv -f UTF-16 -t UTF-8'),
        ('Grüße'.encode('latin-1'), 'not UTF-8 at byte 2; .*iconv -f LATIN1 -t UTF-8'),
    ],
)
def test_a_file_that_is_no_text_is_named_for_what_it_is(tmp_path, content, says):
    path = tmp_path / 'corpus.txt'
    path.write_bytes(content)
    with pytest.raises(UserError, match=says), open(path, 'rb') as file:
        list(documents.read_text(file, path, DataConfig()))
