import builtins
import dataclasses
import gzip
import json
import os
import sys
import types

import pytest

from gpt_jax.data import corpora, locations
from gpt_jax.data.config import DataConfig
from gpt_jax.data.corpora import CORPORA, make_corpus
from gpt_jax.errors import UserError


def texts(**settings):
    return [piece.text for piece in make_corpus(DataConfig(**settings)).pieces()]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'texts'
    for name, data in {
        'b.txt': b'second',
        'a/z.md': b'first',
        'c.py': b'third',
        'd.png': b'\x89PNG\0\xff',
        '.hidden.txt': b'hidden',
        '.git/config': b'hidden',
        'lines.jsonl': b'{"text": "line"}',
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_text_reads_a_file_a_folder_or_a_glob(folder):
    assert texts(corpus='text', source=str(folder / 'b.txt')) == ['second']
    assert texts(corpus='text', source=str(folder)) == [
        'first', 'second', 'third', '{"text": "line"}'
    ]  # fmt: skip
    assert texts(corpus='text', source=f'{folder}/**/*.[tm]*') == ['first', 'second']
    (folder / 'e.txt.gz').write_bytes(gzip.compress(b'fourth'))
    (folder / 'f.png.gz').write_bytes(gzip.compress(b'\x89PNG\0\xff'))
    assert texts(corpus='text', source=str(folder))[3] == 'fourth'
    assert len(texts(corpus='text', source=str(folder))) == 5


def test_jsonl_reads_plain_and_compressed_lines(folder):
    zstandard = pytest.importorskip('zstandard')
    (folder / 'm.jsonl.gz').write_bytes(gzip.compress(b'{"text": "gz"}\n'))
    two_frames = b''.join(zstandard.compress(b'{"text": "%s"}\n' % name) for name in (b'1', b'2'))
    (folder / 'n.jsonl.zst').write_bytes(two_frames)
    assert texts(corpus='jsonl', source=str(folder)) == ['line', 'gz', '1', '2']


@pytest.mark.parametrize('suffix', ['.gz', '.zst'])
def test_a_damaged_compressed_file_is_named(folder, suffix):
    compress = pytest.importorskip('zstandard').compress if suffix == '.zst' else gzip.compress
    whole = compress(b'{"text": "%s"}\n' % os.urandom(300).hex().encode())
    for data in (whole[:200], whole[:100] + b'\0' * 80 + whole[180:], b'no archive'):
        path = folder / f'bad.jsonl{suffix}'
        path.write_bytes(data)
        with pytest.raises(UserError, match=f'bad.jsonl{suffix}'):
            texts(corpus='jsonl', source=str(path))


def test_python_stdlib_is_source_code_without_tests():
    corpus = make_corpus(DataConfig())
    names = {path.name for path in corpus.files}
    assert {'argparse.py', 'ast.py', 'decoder.py'} <= names
    assert not any({'test', 'idlelib', 'site-packages'} & set(path.parts) for path in corpus.files)
    assert 8e6 < corpus.size < 30e6
    assert next(corpus.pieces()).starts_document
    assert corpus.fingerprint() == make_corpus(DataConfig()).fingerprint()


def test_a_fingerprint_follows_content_and_not_place(folder, tmp_path):
    def fingerprint(source, **settings):
        return make_corpus(DataConfig(corpus='text', source=str(source), **settings)).fingerprint()

    before = fingerprint(folder)
    moved = tmp_path / 'elsewhere'
    folder.rename(moved)
    assert fingerprint(moved) == before
    (moved / 'b.txt').write_text('sekond')
    assert fingerprint(moved) != before


def test_a_large_file_is_hashed_once_until_it_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(locations, 'REMEMBERED_BYTES', 1)
    config = DataConfig(cache_dir=str(tmp_path / 'cache'))
    path, hashed = folder / 'b.txt', []
    real = locations.files.sha256_of
    monkeypatch.setattr(
        locations.files, 'sha256_of', lambda path: hashed.append(path) or real(path)
    )
    first = locations.content_hash(path, config)
    assert locations.content_hash(path, config) == first and len(hashed) == 1
    path.write_text('chang1')
    os.utime(path, ns=(0, 12345))
    assert locations.content_hash(path, config) != first and len(hashed) == 2


def test_position_ends_at_size(folder):
    corpus = make_corpus(DataConfig(corpus='text', source=str(folder)))
    positions = [corpus.position for _ in corpus.pieces()]
    assert positions == sorted(positions)
    assert corpus.position == corpus.size == 5 + 6 + 5 + 16


WITHOUT_SOURCE = {'python_stdlib', 'tiny_shakespeare', 'modular', 'repeated'}


@pytest.mark.parametrize('corpus', sorted(set(CORPORA) - WITHOUT_SOURCE))
def test_a_corpus_without_source_names_the_key(corpus):
    with pytest.raises(UserError, match='config.data.source'):
        make_corpus(DataConfig(corpus=corpus))


@pytest.mark.parametrize('corpus', ['text', 'jsonl', 'parquet'])
@pytest.mark.parametrize('source', ['nowhere.txt', 'nowhere/*.txt', 'empty'])
def test_a_source_without_files_names_the_key(corpus, source, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=f'config.data.source=.*names no {corpus} files'):
        make_corpus(DataConfig(corpus=corpus, source=str(tmp_path / source)))


def test_an_unknown_corpus_lists_the_known_ones():
    with pytest.raises(UserError, match="config.data.corpus='nope'.*python_stdlib.*shards"):
        make_corpus(DataConfig(corpus='nope'))


@pytest.mark.parametrize(
    ('corpus', 'name', 'package'),
    [
        ('jsonl', 'x.jsonl.zst', 'zstandard'),
        ('parquet', 'x.parquet', 'pyarrow'),
        ('huggingface', 'x', 'datasets'),
    ],
)
def test_a_missing_optional_package_is_named(tmp_path, monkeypatch, corpus, name, package):
    real_import = builtins.__import__

    def without(wanted, *args, **kwargs):
        if wanted.partition('.')[0] == package:
            raise ImportError(wanted)
        return real_import(wanted, *args, **kwargs)

    path = tmp_path / name
    path.mkdir() if corpus == 'huggingface' else path.write_bytes(b'')
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(UserError, match=f'pip install {package}'):
        texts(corpus=corpus, source=str(path))


def test_parquet_streams_a_column(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    path = tmp_path / 'x.parquet'
    rows = [f'row {i}' for i in range(3000)] + [None, '']
    parquet.write_table(pyarrow.table({'body': rows, 'id': range(len(rows))}), path)
    assert texts(corpus='parquet', source=str(path), text_field='body') == rows[:3000]
    with pytest.raises(UserError, match=r'config.data.text_field to one of: body, id'):
        texts(corpus='parquet', source=str(path))
    path.write_bytes(b'PAR1 no table')
    with pytest.raises(UserError, match='x.parquet is not a readable parquet file'):
        texts(corpus='parquet', source=str(path))


def test_a_local_hugging_face_folder_streams(tmp_path):
    pytest.importorskip('datasets')
    folder = tmp_path / 'set'
    folder.mkdir()
    (folder / 'train.jsonl').write_text(
        ''.join(json.dumps({'text': f'row {i}'}) + '\n' for i in range(50))
    )
    config = DataConfig(corpus='huggingface', source=str(folder))
    assert texts(**dataclasses.asdict(config)) == [f'row {i}' for i in range(50)]
    with pytest.raises(UserError, match='config.data.text_field to one of: text'):
        texts(corpus='huggingface', source=str(folder), text_field='body')
    before = make_corpus(config).fingerprint()
    (folder / 'train.jsonl').write_text('{"text": "other"}')
    assert make_corpus(config).fingerprint() != before


def test_the_hub_is_read_at_the_revision_of_the_fingerprint(monkeypatch):
    """Stands in for the network, not for the packages' own behaviour."""
    asked = []

    def load_dataset(name, configuration, **settings):
        asked.append((name, configuration, settings))
        return [{'text': 'one'}, {'text': ''}, {'text': 'two'}]

    class HfApi:
        def dataset_info(self, name):
            if name == 'owner/missing':
                raise ValueError('no such data set\nsecond line')
            return types.SimpleNamespace(sha='abc123')

    monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(HfApi=HfApi))
    corpus = make_corpus(DataConfig(corpus='huggingface', source='owner/books:small'))
    whole, large = (
        make_corpus(DataConfig(corpus='huggingface', source=f'owner/books{configuration}'))
        for configuration in ('', ':large')
    )
    assert whole.fingerprint() == 'abc123' and corpus.name == 'books_small'
    assert len({each.fingerprint() for each in (whole, large, corpus)}) == 3
    assert [piece.text for piece in corpus.pieces()] == ['one', 'two']
    assert asked == [
        ('owner/books', 'small', {'split': 'train', 'streaming': True, 'revision': 'abc123'})
    ]
    missing = make_corpus(DataConfig(corpus='huggingface', source='owner/missing'))
    with pytest.raises(UserError, match="config.data.source='owner/missing': no such data set$"):
        missing.fingerprint()


def test_tiny_shakespeare_is_the_file_that_everyone_uses(shared_data):
    path = shared_data / 'corpora/tinyshakespeare/input.txt'
    assert locations.content_hash(path, DataConfig()) == corpora.TINY_SHAKESPEARE_SHA256
