"""Rows that cannot be read: refused with the knob that leaves them out, or left out and listed."""

import json

import pytest

from gpt_jax.data.config import DataConfig
from gpt_jax.data.corpora import make_corpus
from gpt_jax.data.shard_manifest import MANIFEST, Manifest
from gpt_jax.data.split import TRAIN
from gpt_jax.data.verified import VERIFIED
from gpt_jax.errors import UserError

BAD_JSON = {
    b'{"text": ': 'is not valid JSON',
    b'{"text": "\xe9"}': 'is not UTF-8 at byte',
    b'["a"]': 'is not a JSON object',
    b'{"body": "a"}': "has no field 'text'",
    b'{"text": 3}': "the field 'text' holds int",
    b'{"text": "\\ud800"}': 'half a surrogate pair',
}
CHAT = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
BAD_CHATS = {
    b'{"messages": [': 'is not valid JSON',
    b'{"text": "a"}': 'messages',
    b'{"messages": [{"role": "user", "content": "a"}]}': 'has no message of the assistant',
    b'{"messages": [{"role": "parrot"}]}': 'content',
}


def interleave(bad, good: bytes) -> bytes:
    """A good row before each bad one and at the end."""
    return b''.join(good + b'\n' + row + b'\n' for row in bad) + good


@pytest.fixture
def sources(tmp_path):
    """A source of each corpus with bad rows, by what is wrong with these and where."""

    def write(corpus):
        path = tmp_path / f'rows.{corpus}'
        if corpus == 'parquet':
            pyarrow = pytest.importorskip('pyarrow')
            from pyarrow import parquet

            binary = pyarrow.array([b'a', b'\xe9', b'b'])
            texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, binary.buffers())
            parquet.write_table(pyarrow.table({'text': texts}), path)
            return path, {'row 2': 'the text is not UTF-8'}
        bad, good = (BAD_CHATS, CHAT) if corpus == 'chat' else (BAD_JSON, b'{"text": "good"}')
        path.write_bytes(interleave(bad, good))
        return path, {f'line {2 * i}': reason for i, reason in enumerate(bad.values(), start=1)}

    return write


@pytest.mark.parametrize('corpus', ['jsonl', 'chat', 'parquet'])
def test_bad_rows_are_left_out_counted_and_listed(corpus, sources, prepare_into, capsys):
    path, bad = sources(corpus)
    settings = {'corpus': corpus, 'source': path, 'split': 'hash:0'}
    with pytest.raises(UserError, match='rows with config.data.skip_bad_rows=True') as error:
        prepare_into(**settings)
    where, reason = next(iter(bad.items()))
    assert f'{path}, {where}' in str(error.value) and reason in str(error.value)
    assert '\n' not in str(error.value)

    manifest = Manifest.read(prepare_into(**settings, skip_bad_rows=True))
    assert manifest.splits[TRAIN].documents == len(bad) + 1
    assert manifest.skipped_rows == len(manifest.first_skipped) == len(bad)
    for (where, reason), line in zip(bad.items(), manifest.first_skipped, strict=True):
        assert line.startswith(f'{path}, {where}') and reason in line
    assert '\n  '.join([f'bad rows left out: {len(bad)}', *manifest.first_skipped]) in (
        capsys.readouterr().out
    )


def test_the_rows_of_a_data_set_are_skipped_too(tmp_path):
    pytest.importorskip('datasets')
    (tmp_path / 'hub').mkdir()
    (tmp_path / 'hub' / 'train.jsonl').write_text('{"body": "a"}\n{"body": null}\n{"body": "b"}\n')
    config = DataConfig(corpus='huggingface', source=str(tmp_path / 'hub'), skip_bad_rows=True)
    corpus = make_corpus(config)
    assert list(corpus.pieces()) == []
    assert corpus.skipped.count == 3
    assert corpus.skipped.first[1].startswith(f"{tmp_path / 'hub'}, row 2 has no field 'text'")


def test_only_the_first_rows_are_listed(prepare_into, tmp_path, capsys):
    (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n' + '{\n' * 1234)
    settings = {'corpus': 'jsonl', 'source': tmp_path / 'a.jsonl', 'split': 'hash:0'}
    manifest = Manifest.read(prepare_into(**settings, skip_bad_rows=True))
    assert manifest.skipped_rows == 1234 and len(manifest.first_skipped) == 10
    assert 'bad rows left out: 1,234' in capsys.readouterr().out


@pytest.mark.parametrize('split', ['hash:0.2', 'tail:0.2'])
def test_every_preparation_gives_the_same_shards(split, prepare_into, tmp_path):
    lines = [json.dumps({'text': f'document {i} ' * 20}) if i % 3 else '{' for i in range(300)]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))

    def prepare(cache: str):
        folder = prepare_into(
            corpus='jsonl',
            source=tmp_path / 'a.jsonl',
            split=split,
            skip_bad_rows=True,
            shard_tokens=4000,
            cache_dir=tmp_path / cache,
        )
        found = [path for path in folder.glob('*.*') if path.name != VERIFIED]  # which has dates
        return folder, {path.name: path.read_bytes() for path in found}

    _, whole = prepare('one')
    folder, other = prepare('two')
    assert whole == other and len(whole) > 20
    assert Manifest.read(folder).skipped_rows == 100  # though the corpus was read several times
    for name in (MANIFEST, 'train-00003.json', 'validation-00000.tokens'):  # as if it was killed
        (folder / name).unlink()
    assert prepare('two') == (folder, whole)


def test_a_corpus_of_bad_rows_alone_is_refused(prepare_into, tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"body": "a"}\n{"body": "b"}\n')
    with pytest.raises(UserError, match="all 2 rows .* are bad; .*line 1 has no field 'text'"):
        prepare_into(corpus='jsonl', source=tmp_path / 'a.jsonl', skip_bad_rows=True)


def test_the_knob_alone_changes_the_identity(prepare_into, write_jsonl):
    settings = {'corpus': 'jsonl', 'source': write_jsonl(['a', 'b', 'c']), 'split': 'hash:0'}
    plain = prepare_into(**settings)
    assert plain.name == 'corpus-ab501f8686b9'  # as before there was the knob
    assert prepare_into(**settings, skip_bad_rows=True) != plain
