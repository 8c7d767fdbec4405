import os
import re

import numpy as np
import pytest

from gpt_jax import object_store
from gpt_jax.data import locations, remote_shards
from gpt_jax.data.config import DataConfig
from gpt_jax.data.mixture import open_sources
from gpt_jax.data.prepare import prepare
from gpt_jax.data.shard_tokenizer import load_tokenizer
from gpt_jax.data.shards import Shards
from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind
from tests.tiny_config import TEXT

CHAR = TokenizerConfig(kind=TokenizerKind.CHAR)


@pytest.fixture
def prepared(tmp_path):
    config = DataConfig(
        corpus='text',
        source=str(TEXT),
        separator='\n',
        split='tail:0.2',
        cache_dir=str(tmp_path / 'prepared'),
    )
    return prepare(config, CHAR, progress=Quiet, shard_tokens=500)


class Quiet:
    """A progress line that nobody sees."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, *_, **__):
        pass


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The names of the files that are copied from a store, as they are."""
    names = []
    download = object_store.download

    def record(source, target):
        names.append(source.name)
        download(source, target)

    monkeypatch.setattr(object_store, 'download', record)
    return names


def make_config(source: str, tmp_path) -> DataConfig:
    return DataConfig(corpus='shards', source=source, cache_dir=str(tmp_path / 'cache'))


def open_all(source: str, tmp_path):
    return prepare(make_config(source, tmp_path), CHAR, progress=Quiet)


def tokens(folder, split='train') -> np.ndarray:
    shards = Shards.open(folder, split)
    return shards.read(0, shards.num_tokens)


def test_copied_once_and_read_as_the_original(bucket, prepared, tmp_path, fetched):
    source = f'{bucket}/data/alice'
    remote_shards.publish(prepared, source, key='--publish')
    remote_shards.publish(prepared, source, key='--publish')  # is there: nothing to do
    folder = open_all(source, tmp_path)
    assert folder.is_relative_to(tmp_path / 'cache')
    assert fetched.count('train-00003.tokens') == 1
    assert np.array_equal(tokens(folder), tokens(prepared))
    for split in ('train', 'validation'):
        mine, original = (Shards.open(each, split) for each in (folder, prepared))
        assert mine.fingerprint == original.fingerprint, 'a run may move between the two'
    fetched.clear()
    assert open_all(source, tmp_path) == folder
    assert fetched == []


@pytest.mark.parametrize('remembered', [0, 2**26], ids=['by date', 'by hash'])
def test_a_damaged_copy_is_found_and_copied_again(
    s3, prepared, tmp_path, fetched, monkeypatch, remembered
):
    monkeypatch.setattr(locations, 'REMEMBERED_BYTES', remembered)
    remote_shards.publish(prepared, f'{s3}/data', key='--publish')
    folder = open_all(f'{s3}/data', tmp_path)
    for name in ('train-00001.tokens', 'validation-00000.documents'):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[3] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
    (folder / 'train-00002.tokens').unlink()
    (folder / 'tokenizer' / 'characters.json').write_text('{')
    (folder / '.train-00000.tmp-1').mkdir()
    (folder / '.manifest.json.tmp-1').touch()
    fetched.clear()
    assert open_all(f'{s3}/data', tmp_path) == folder
    wanted = {'train-00001', 'train-00002', 'validation-00000'}
    assert {name.partition('.')[0] for name in fetched} - {'characters', 'tokenizer_config'} == (
        wanted
    )
    assert np.array_equal(tokens(folder), tokens(prepared))
    assert load_tokenizer(folder).fingerprint() == load_tokenizer(prepared).fingerprint()
    assert not list(folder.glob('.*tmp*'))


def test_a_large_shard_is_hashed_once_until_it_changes(s3, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(locations, 'REMEMBERED_BYTES', 0)
    remote_shards.publish(prepared, f'{s3}/data', key='--publish')
    hashed, content_hash = [], remote_shards.ShardInfo.content_hash

    def note(shard, folder) -> str:
        hashed.append(shard.name)
        return content_hash(shard, folder)

    monkeypatch.setattr(remote_shards.ShardInfo, 'content_hash', note)
    folder = open_all(f'{s3}/data', tmp_path)
    assert hashed
    hashed.clear()
    open_all(f'{s3}/data', tmp_path)
    assert not hashed
    os.utime(folder / 'train-00000.tokens', ns=(0, 0))
    open_all(f'{s3}/data', tmp_path)
    assert set(hashed) == {'train-00000'}


def test_shards_that_are_not_what_their_manifest_says(s3, prepared, tmp_path):
    remote_shards.publish(prepared, f'{s3}/data', key='--publish')
    path = object_store.to_path(f'{s3}/data', key='') / 'train-00000.tokens'
    content = path.read_bytes()
    path.write_bytes(b'\1' + content[1:])
    with pytest.raises(UserError, match=r'train-00000\.\* is not what manifest.json .* says'):
        open_all(f'{s3}/data', tmp_path)
    object_store.remove(path)
    with pytest.raises(UserError, match='train-00000.tokens is missing; publish'):
        open_all(f'{s3}/data', tmp_path)
    with pytest.raises(UserError, match='no finished manifest'):  # of the copy
        Shards.open(next((tmp_path / 'cache' / 'remote').glob('data-*')), 'train', tokenizer=CHAR)
    path.write_bytes(content)
    assert np.array_equal(tokens(open_all(f'{s3}/data', tmp_path)), tokens(prepared))


def test_other_shards_of_the_same_name_are_refused(s3, prepared, tmp_path):
    remote_shards.publish(prepared, f'{s3}/data', key='--publish')
    other = prepare(
        DataConfig(corpus='text', source=str(TEXT), split='tail:0.4', cache_dir=str(tmp_path)),
        CHAR,
        progress=Quiet,
    )
    with pytest.raises(UserError, match=f'--publish={s3}/data holds other shards already'):
        remote_shards.publish(other, f'{s3}/data', key='--publish')


def test_a_part_of_a_mixture(s3, prepared, tmp_path):
    remote_shards.publish(prepared, f'{s3}/data', key='--publish')
    config = make_config(str(prepared), tmp_path)
    config.mixture = (f'{s3}/data=0.5',)
    folder = prepare(config, CHAR, progress=Quiet)
    sources = open_sources(folder, config, split='train', tokenizer=load_tokenizer(folder))
    assert [source.weight for source in sources] == [1.0, 0.5]
    assert sources[1].shards.num_tokens == sources[0].shards.num_tokens


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['--config.data.corpus=shards', '--config.data.source={}/nothing'],
            'config.data.source={}/nothing has no finished manifest.json; put prepared shards '
            'there with --mode prepare --publish={}/nothing',
        ),
        (['--config.data.source={}/text'], 'config.data.source={}/text: of an object store only'),
        (['--config.data.cache_dir={}/cache'], 'config.data.cache_dir={}/cache must be on a disk'),
        (['--publish={}-other/a'], '--publish={}-other/a: there is no bucket'),
        (['--publish=data'], '--publish=data must begin with gs:// or s3://'),
    ],
)
def test_what_cannot_be_is_one_line(s3, arguments, message, capsys, tmp_path):
    arguments = [argument.format(s3) for argument in arguments]
    cache = f'--config.data.cache_dir={tmp_path}'
    assert main(['--config=tests/tiny_config.py', '--mode=prepare', cache, *arguments]) == 2
    error = capsys.readouterr().err
    assert f'error: {message.format(s3, s3)}' in error
    assert not re.search('Traceback', error)
