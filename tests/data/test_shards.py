import json
import pathlib

import numpy as np
import pytest

from gpt_jax import tokenizer as tokenizers
from gpt_jax.data.bin_files import find_token_files
from gpt_jax.data.config import DataConfig
from gpt_jax.data.encode import encode_text_file
from gpt_jax.data.prepare import prepare
from gpt_jax.data.shard_manifest import MANIFEST
from gpt_jax.data.shards import Shards
from gpt_jax.data.split import SPLITS, TRAIN, VALIDATION
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind

BYTE = tokenizers.make_tokenizer(TokenizerConfig(), list)
TOKENS = np.arange(1000) % 250


def write_nanogpt(path: pathlib.Path, tokens) -> None:
    """As nanoGPT's data/*/prepare.py: np.array(ids, dtype=np.uint16).tofile(…)."""
    np.array(tokens, np.uint16).tofile(path)


def write_llm_c(path: pathlib.Path, tokens, *, magic=20240520, version=1, dtype=np.uint16) -> None:
    """As llm.c's dev/data/data_common.py: 256 int32 of header, then the tokens."""
    header = np.zeros(256, np.int32)
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + np.array(tokens, dtype).tobytes())


def make(arrays, offsets=None):
    return Shards(
        [np.array(array, np.uint16) for array in arrays],
        name='test',
        fingerprint='',
        count_bytes=lambda: 0,
        eot_id=256,
        offsets=None if offsets is None else [np.array(each, np.int64) for each in offsets],
    )


@pytest.mark.parametrize('cuts', [[], [3], [3, 4, 9], [0, 5, 5, 10]])
def test_reading_crosses_files(cuts):
    tokens = np.arange(10)
    shards = make(np.split(tokens, cuts))
    for start in range(10):
        for stop in range(start + 1, 11):
            read = shards.read(start, stop)
            assert read.dtype == np.int32 and np.array_equal(read, tokens[start:stop])


@pytest.mark.parametrize('cuts', [[], [3], [4], [5, 9], [4, 4, 8]])
def test_segments_begin_at_documents(cuts):
    # Documents: [1 2 3 4], [256 5 6], [256], [256 7 8 9]
    tokens = np.array([1, 2, 3, 4, 256, 5, 6, 256, 256, 7, 8, 9])
    starts, edges = np.array([0, 4, 7, 8]), [0, *cuts, 12]
    offsets = [
        starts[(starts >= low) & (starts < high)] - low
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    number = np.array([0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3])
    for shards in (make(np.split(tokens, cuts)), make(np.split(tokens, cuts), offsets)):
        for start in range(12):
            for stop in range(start + 1, 13):
                expected = number[start:stop] - number[start] + 1
                assert np.array_equal(shards.segment_ids(start, stop), expected)


def test_a_nanogpt_folder(tmp_path):
    write_nanogpt(tmp_path / 'train.bin', TOKENS)
    write_nanogpt(tmp_path / 'val.bin', TOKENS[:77])
    (tmp_path / 'meta.pkl').write_bytes(b'not needed')
    config = DataConfig(corpus='shards', source=str(tmp_path))
    source = prepare(config, TokenizerConfig())
    train, validation = (
        Shards.open(source, split, tokenizer=BYTE) for split in (TRAIN, VALIDATION)
    )
    assert np.array_equal(train.read(0, train.num_tokens), TOKENS)
    assert np.array_equal(validation.read(0, validation.num_tokens), TOKENS[:77])
    assert validation.num_bytes == 77 and train.fingerprint != validation.fingerprint


@pytest.mark.parametrize(
    'header', [{}, {'magic': 20240801, 'version': 7, 'dtype': np.uint32}], ids=['gpt2', 'llama3']
)
def test_llm_c_files_by_glob(tmp_path, header):
    for i in range(3):
        write_llm_c(tmp_path / f'fineweb_train_00000{i}.bin', TOKENS[i * 300 :][:300], **header)
    write_llm_c(tmp_path / 'fineweb_val_000000.bin', TOKENS[900:], **header)
    write_nanogpt(tmp_path / 'unrelated_train.bin', [1])
    source = prepare(
        DataConfig(corpus='shards', source=f'{tmp_path}/fineweb_*.bin'), TokenizerConfig()
    )
    train = Shards.open(source, TRAIN, tokenizer=BYTE)
    assert np.array_equal(train.read(0, train.num_tokens), TOKENS[:900])
    assert Shards.open(source, VALIDATION, tokenizer=BYTE).num_tokens == 100


def test_the_words_of_a_name_decide_its_split(tmp_path):
    names = ('pretrain_train_0.bin', 'pretrain_val_0.bin', 'retrieval_train.bin', 'Validation.bin')
    for name in names:
        write_nanogpt(tmp_path / name, TOKENS)
    found = {
        split: [path.name for path in find_token_files(str(tmp_path), split)] for split in SPLITS
    }
    assert found == {
        TRAIN: ['pretrain_train_0.bin', 'retrieval_train.bin'],
        VALIDATION: ['Validation.bin', 'pretrain_val_0.bin'],
    }
    write_nanogpt(tmp_path / 'train_val.bin', TOKENS)
    with pytest.raises(UserError, match='train_val.bin is named for training and for validation'):
        find_token_files(str(tmp_path), TRAIN)


def test_one_file_has_only_a_training_split(tmp_path):
    write_nanogpt(tmp_path / 'tokens.bin', TOKENS)
    source = tmp_path / 'tokens.bin'
    assert Shards.open(source, TRAIN, tokenizer=BYTE).num_tokens == 1000
    with pytest.raises(UserError, match="no file with 'val' in its name.*name a prepared folder"):
        Shards.open(source, VALIDATION, tokenizer=BYTE)


def test_bytes_of_tokens_without_manifest_are_counted(tmp_path):
    text = 'To be, é or not €\n' * 40
    ids = BYTE.encode(text)
    write_nanogpt(tmp_path / 'train.bin', [*ids, BYTE.eot_id, *ids])
    shards = Shards.open(tmp_path, TRAIN, tokenizer=BYTE)
    assert shards.num_bytes == 2 * len(text.encode())
    assert shards.segment_ids(0, shards.num_tokens)[[0, len(ids) - 1, len(ids), -1]].tolist() == [
        1, 1, 2, 2
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'no whole number of tokens'),
        (b'abc', 'no whole number of tokens'),
        (np.array([20240520, 2, 0] + [0] * 253, '<i4').tobytes(), 'version 2, which is unknown'),
        (np.array([20240520, 1, 9] + [0] * 253, '<i4').tobytes() + b'ab' * 8, 'says 9 tokens'),
        (np.array([20240520, 1, 0] + [0] * 253, '<i4').tobytes(), 'no whole number of tokens'),
    ],
)
def test_a_torn_or_unknown_file_is_named(tmp_path, data, message):
    (tmp_path / 'train.bin').write_bytes(data)
    with pytest.raises(UserError, match=f'train.bin .*{message}'):
        prepare(DataConfig(corpus='shards', source=str(tmp_path)), TokenizerConfig())


def test_a_tokenizer_that_is_too_small_is_refused(tmp_path):
    write_nanogpt(tmp_path / 'train.bin', [1, 50256, 2])
    with pytest.raises(UserError, match='token id 50256.* byte .*257 ids; set config.tokenizer'):
        prepare(DataConfig(corpus='shards', source=str(tmp_path)), TokenizerConfig())
    with pytest.raises(UserError, match='set config.tokenizer.path'):
        prepare(
            DataConfig(corpus='shards', source=str(tmp_path)),
            TokenizerConfig(kind=TokenizerKind.CHAR),
        )


@pytest.mark.parametrize('source', ['', 'nowhere', 'empty', 'empty/*.bin'])
def test_no_shards_names_the_key(tmp_path, source):
    (tmp_path / 'empty').mkdir()
    source = source and str(tmp_path / source)
    with pytest.raises(UserError, match='config.data.source'):
        prepare(DataConfig(corpus='shards', source=source), TokenizerConfig())


def test_a_tokenizer_of_other_content_is_refused(prepare_into, write_jsonl):
    char = TokenizerConfig(kind=TokenizerKind.CHAR)
    folder = prepare_into(char, corpus='jsonl', source=write_jsonl(['ab', 'ba']), split='tail:0.1')
    other = tokenizers.make_tokenizer(char, lambda: ['abc'])
    with pytest.raises(UserError, match='another char tokenizer.*config.tokenizer.path'):
        Shards.open(folder, TRAIN, tokenizer=other)


@pytest.mark.parametrize('damage', ['{', '[]', '{"version": 99}', '{"version": 1}', 'fields'])
def test_a_damaged_manifest_is_one_line(prepare_into, write_jsonl, damage):
    folder = prepare_into(corpus='jsonl', source=write_jsonl(['ab', 'ba']), split='tail:0.1')
    path = folder / MANIFEST
    if damage == 'fields':
        manifest = json.loads(path.read_text())
        del manifest['splits']['train']['shards'][0]['tokens']
        damage = json.dumps(manifest)
    path.write_text(damage)
    with pytest.raises(UserError, match='manifest.json'):
        Shards.open(folder, TRAIN)


def test_any_text_file_can_be_evaluated(tmp_path):
    path = tmp_path / 'story.txt'
    path.write_bytes(b'\xef\xbb\xbf' + 'é, e'.encode())
    shards = encode_text_file(path, BYTE)
    assert shards.read(0, shards.num_tokens).tolist() == list('é, e'.encode())
    assert shards.num_bytes == 5
    path.write_bytes(b'')
    with pytest.raises(UserError, match='story.txt is empty'):
        encode_text_file(path, BYTE)
    with pytest.raises(UserError, match='cannot read .*nowhere.txt'):
        encode_text_file(tmp_path / 'nowhere.txt', BYTE)
