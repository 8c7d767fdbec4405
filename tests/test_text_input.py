"""One rule wherever text comes in: UTF-8, no byte-order mark at the start, all else as it is."""

import gzip
import hashlib
import io
import json
import pathlib
import re
import types

import numpy as np
import pytest

from gpt_jax import files
from gpt_jax import tokenizer as tokenizers
from gpt_jax.data.config import DataConfig
from gpt_jax.data.corpora import make_corpus
from gpt_jax.data.encode import encode_text_file
from gpt_jax.data.given_text import describe_text
from gpt_jax.errors import UserError
from gpt_jax.evaluate.rows import read_rows
from gpt_jax.evaluate.tasks import TASKS
from gpt_jax.inference.config import SampleConfig
from gpt_jax.modes import generate
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind
from gpt_jax.tokenizer.chat_template import ChatTemplate

BOM = b'\xef\xbb\xbf'
BYTES = tokenizers.make_tokenizer(TokenizerConfig(), tuple)


def read_corpus(config: DataConfig) -> str:
    return ''.join(piece.text for piece in make_corpus(config).pieces())


def corpus(name: str, file: str, *, source: str = '', compress=bytes):
    """A place of text: the corpus `name` of a `file`, named by itself or by `source`."""

    def read(folder: pathlib.Path, content: bytes, monkeypatch) -> str:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(compress(content))
        return read_corpus(DataConfig(corpus=name, source=str(folder / (source or file))))

    return read


def zst(content: bytes) -> bytes:
    return pytest.importorskip('zstandard').compress(content)


def url(folder, content, monkeypatch):
    (folder / 'web.txt').write_bytes(content)
    source, sha256 = (folder / 'web.txt').as_uri(), hashlib.sha256(content).hexdigest()
    return read_corpus(
        DataConfig(corpus='url', source=source, sha256=sha256, cache_dir=str(folder / 'cache'))
    )


def chat(folder, content, monkeypatch):
    line = content.replace(b'{"text": ', b'{"messages": [{"role": "assistant", "content": ')
    (folder / 'chat.jsonl').write_bytes(line.replace(b'"}', b'"}]}'))
    (folder / 'bare.jinja').write_text(
        '{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}'
        '{% endfor %}'
    )
    return read_corpus(
        DataConfig(
            corpus='chat',
            source=str(folder / 'chat.jsonl'),
            chat_template=str(folder / 'bare.jinja'),
        )
    )


def fit_path(folder, content, monkeypatch):
    (folder / 'text.md').write_bytes(content)
    return read_corpus(describe_text(folder / 'text.md', folder))


def fit_text(folder, content, monkeypatch):
    text = content.decode('utf-8', 'surrogateescape')  # as Python decodes what it is given
    return read_corpus(describe_text(text + ' \n', folder)).removesuffix(' \n')


def evaluated(folder, content, monkeypatch):
    (folder / 'text.txt').write_bytes(content)
    shards = encode_text_file(folder / 'text.txt', BYTES)
    return BYTES.decode(np.asarray(shards.read(0, shards.num_tokens)))


def prompt_file(folder, content, monkeypatch):
    (folder / 'prompt').write_bytes(content)
    flags = types.SimpleNamespace(prompt=None, prompt_file=str(folder / 'prompt'))
    [prompt] = generate.read_prompts(flags, SampleConfig())
    return prompt


def standard_input(folder, content, monkeypatch):
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(content), encoding='latin-1'))
    [prompt] = generate.read_prompts(
        types.SimpleNamespace(prompt=['-'], prompt_file=None), SampleConfig()
    )
    return prompt


def rows(file: str):
    def read(folder: pathlib.Path, content: bytes, monkeypatch) -> str:
        (folder / file).write_bytes(content)
        [(_, row)] = read_rows('perplexity', TASKS['perplexity'], [str(folder / file)])
        return row['text']

    return read


def template(folder, content, monkeypatch):
    (folder / 'chat.jinja').write_bytes(content)
    return ChatTemplate.of(None, path=folder / 'chat.jinja').source


def json_file(folder, content, monkeypatch):
    (folder / 'tokenizer.json').write_bytes(content)
    return files.read_json(folder / 'tokenizer.json')['text']


# Of each place: how it is read, and whether the text is in a JSON object there.
PLACES = {
    'text': (corpus('text', 'a.txt'), False),
    'text.gz': (corpus('text', 'a.txt.gz', compress=gzip.compress), False),
    'text.zst': (corpus('text', 'a.txt.zst', compress=zst), False),
    'folder': (corpus('text', 'folder/a.txt', source='folder'), False),
    'glob': (corpus('text', 'a.txt', source='*.txt'), False),
    'url': (url, False),
    'jsonl': (corpus('jsonl', 'a.jsonl'), True),
    'jsonl.gz': (corpus('jsonl', 'a.jsonl.gz', compress=gzip.compress), True),
    'chat': (chat, True),
    'GPT.fit of a path': (fit_path, False),
    'GPT.fit of a text': (fit_text, False),
    'GPT.evaluate and --text': (evaluated, False),
    '--prompt_file': (prompt_file, False),
    '--prompt=-': (standard_input, False),
    'benchmark .txt': (rows('perplexity.txt'), False),
    'benchmark .jsonl': (rows('perplexity.jsonl'), True),
    'chat template': (template, False),
    'files of tokenizers': (json_file, True),
}

CONTENTS = {
    'mark at the start': (BOM + b'one two', 'one two'),
    'two marks at the start': (BOM + BOM + b'one two', '\ufeffone two'),
    'mark inside': (b'one ' + BOM + b'two', 'one \ufefftwo'),
    'CR LF': (b'one\r\ntwo\r\n', 'one\r\ntwo\r\n'),
    'CR': (b'one\rtwo\r', 'one\rtwo\r'),
    'NUL': (b'one\0 two', 'one\0 two'),
    'Latin-1': (b'one \xe9 two', UserError('is not UTF-8 at byte {at}; .*iconv -f LATIN1')),
    'half a character': (b'one \xe2\x82', UserError('is not UTF-8 at byte {at}; ')),
    'UTF-16': ('one two'.encode('utf-16'), UserError('is not UTF-8 at byte 0; .*-f UTF-16')),
    'empty': (b'', ''),
}
EXCEPTIONS = {
    ('folder', 'NUL'): UserError('names no text files'),  # left out there, as binary files are
    ('GPT.evaluate and --text', 'empty'): UserError('text.txt is empty'),
    ('chat', 'empty'): UserError('line 1 has no message of the assistant'),
    **{
        ('GPT.fit of a text', content): UserError('has a lone surrogate U.DC.. at character {at}')
        for content in ('Latin-1', 'half a character')
    },
    ('GPT.fit of a text', 'UTF-16'): UserError('has a lone surrogate U.DCFF at character 0'),
}


def in_json(content: bytes) -> bytes:
    """A JSON object with the text as its field `text`."""
    if content.startswith((b'\xff\xfe', b'\xfe\xff')):
        return '{"text": "one two"}'.encode('utf-16')
    mark = BOM if content.startswith(BOM) else b''
    text = content.removeprefix(BOM)
    for byte in (b'\r', b'\n', b'\0'):
        text = text.replace(byte, json.dumps(byte.decode())[1:-1].encode())
    return mark + b'{"text": "' + text + b'"}'


@pytest.mark.parametrize('content', CONTENTS)
@pytest.mark.parametrize('place', PLACES)
def test_every_place_reads_text_by_one_rule(place, content, tmp_path, monkeypatch):
    read, is_json = PLACES[place]
    data, expected = CONTENTS[content]
    expected = EXCEPTIONS.get((place, content), expected)
    data = in_json(data) if is_json else data
    if not isinstance(expected, UserError):
        assert read(tmp_path, data, monkeypatch) == expected
        return
    at = len('one ') + (len('{"text": "') if is_json else 0)
    at += len('{"messages": [{"role": "assistant", "content": ') - 9 if place == 'chat' else 0
    with pytest.raises(UserError) as error:
        read(tmp_path, data, monkeypatch)
    assert re.search(str(expected).format(at=at), str(error.value)), error.value
    assert '\n' not in str(error.value)


def test_merges_have_any_line_ends(tmp_path):
    def read(name: str, merges: bytes):
        folder = tmp_path / name
        folder.mkdir()
        vocabulary = {'a': 0, 'b': 1, 'c': 2, 'ab': 3, 'abc': 4}
        (folder / 'vocab.json').write_text(json.dumps(vocabulary))
        (folder / 'merges.txt').write_bytes(merges)
        config = TokenizerConfig(kind=TokenizerKind.BPE, path=str(folder))
        return tokenizers.make_tokenizer(config, tuple)

    plain = read('plain', b'#version: 0.2\na b\nab c\n')
    windows = read('windows', BOM + b'#version: 0.2\r\na b\r\nab c\r\n')
    assert plain.encode('abc') == windows.encode('abc') == [4]
    assert plain.fingerprint() == windows.fingerprint()
    with pytest.raises(UserError, match=r'merges.txt is not UTF-8 at byte 14'):
        read('latin', b'#version: 0.2\n\xe9 b\n')


@pytest.mark.parametrize('separator', ['\n\n', '\r\n\r\n', '\n--\n'])
@pytest.mark.parametrize('line_end', ['\n', '\r\n'])
def test_a_separator_parts_lines_of_either_end(separator, line_end, tmp_path):
    part = separator.replace('\r\n', '\n').replace('\n', line_end)
    texts = [f'one{line_end}two', 'three', f'four{line_end}five']
    (tmp_path / 'a.txt').write_bytes((part.join(texts) + line_end).encode())
    config = DataConfig(corpus='text', source=str(tmp_path / 'a.txt'), separator=separator)
    assert [piece.text for piece in make_corpus(config).pieces()] == texts
