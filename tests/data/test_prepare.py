import concurrent.futures
import dataclasses
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt_jax import tokenizer as tokenizers
from gpt_jax.data import locations
from gpt_jax.data import prepare as prepare_module
from gpt_jax.data.config import NOT_CONTENT, DataConfig, content_options
from gpt_jax.data.encode import encode_text_file
from gpt_jax.data.prepare import prepare
from gpt_jax.data.shard_manifest import MANIFEST, TOKENIZER, Manifest, ShardInfo
from gpt_jax.data.shard_tokenizer import load_tokenizer, make_run_tokenizer, tokenizer_identity
from gpt_jax.data.shards import Shards
from gpt_jax.data.split import SPLITS, TRAIN, VALIDATION
from gpt_jax.data.verified import VERIFIED
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind
from gpt_jax.tokenizer.byte import ByteTokenizer

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [f'document {i} ' + 'word ' * (i % 50) for i in range(300)]

# Prepares argv[1] (JSON of DataConfig) in small shards, and is killed before (even argv[2]) or
# after (odd) the argv[2] // 2-th time that a file gets its name.
PREPARE_AND_DIE = """
import json, os, signal, sys
from gpt_jax.data.config import NOT_CONTENT, DataConfig, content_options
from gpt_jax.data.prepare import prepare
from gpt_jax.tokenizer import TokenizerConfig
moment, renames, rename = int(sys.argv[2]), 0, os.replace
def replace(*names):
    global renames
    if moment == 2 * renames:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names)
    if moment == 2 * renames + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    renames += 1
os.replace = replace
config = DataConfig(**json.loads(sys.argv[1]))
print(prepare(config, TokenizerConfig(), shard_tokens=4000), renames)
"""


def start(config, moment=-1, script=PREPARE_AND_DIE, **options):
    arguments = [json.dumps(dataclasses.asdict(config)), str(moment)]
    return subprocess.Popen(
        [sys.executable, '-c', script, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # fmt: skip


def contents(folder):
    """All that is in a folder, by name, without the dates of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and path.name != VERIFIED
    }


def texts_of(folder, split):
    """The documents of a split, decoded again."""
    shards, eot_id = Shards.open(folder, split), load_tokenizer(folder).eot_id
    tokens = shards.read(0, shards.num_tokens)
    parts = np.split(tokens, np.flatnonzero(tokens == eot_id))
    return [load_tokenizer(folder).decode(part[part != eot_id]) for part in parts]


@pytest.fixture
def corpus(write_jsonl, tmp_path):
    return DataConfig(
        corpus='jsonl',
        source=str(write_jsonl(TEXTS)),
        split='hash:0.2',
        cache_dir=str(tmp_path / 'killed'),
    )


@pytest.fixture
def whole(corpus, tmp_path):
    """The folder of an undisturbed preparation."""
    config = dataclasses.replace(corpus, cache_dir=str(tmp_path / 'whole'))
    return prepare(config, TokenizerConfig(), shard_tokens=4000)


def test_every_document_is_in_one_split(prepare_into, write_jsonl):
    folder = prepare_into(corpus='jsonl', source=write_jsonl(TEXTS), split='hash:0.2')
    assert sorted(texts_of(folder, TRAIN) + texts_of(folder, VALIDATION)) == sorted(TEXTS)


def test_shards_do_not_change_the_tokens(prepare_into, write_jsonl, whole):
    folder = prepare_into(corpus='jsonl', source=write_jsonl(TEXTS), split='hash:0.2')
    for split in SPLITS:
        one, many = Shards.open(folder, split), Shards.open(whole, split)
        assert len(Manifest.read(whole).splits[split].shards) > 1
        assert np.array_equal(one.read(0, one.num_tokens), many.read(0, many.num_tokens))
        assert one.fingerprint == many.fingerprint
        assert np.array_equal(
            one.segment_ids(0, one.num_tokens), many.segment_ids(0, many.num_tokens)
        )


def test_the_manifest_counts(prepare_into, write_jsonl):
    texts = ['aé' * 10, 'b' * 30, 'c' * 20]
    folder = prepare_into(corpus='jsonl', source=write_jsonl(texts), split='tail:0.1')
    manifest = Manifest.read(folder)
    train, validation = manifest.splits[TRAIN], manifest.splits[VALIDATION]
    assert (train.tokens, train.documents, train.num_bytes) == (30 + 1 + 30, 2, 60)
    assert (validation.tokens, validation.documents, validation.num_bytes) == (20, 1, 20)
    assert manifest.split_rule == 'tail:0.1' and manifest.dtype == '<u2'
    assert manifest.tokenizer_fingerprint == load_tokenizer(folder).fingerprint()


def test_tiny_shakespeare_splits_as_nanogpt_does(prepare_into, shared_data):
    settings = {
        'corpus': 'text',
        'source': shared_data / 'corpora/tinyshakespeare/input.txt',
        'split': 'tail:0.1',
    }
    char = TokenizerConfig(kind=TokenizerKind.CHAR)
    bpe = TokenizerConfig(kind=TokenizerKind.BPE, path=str(shared_data / 'tokenizers/gpt2'))
    for tokenizer, counts in ((char, (1_003_854, 111_540)), (bpe, (301_966, 36_059))):
        folder = prepare_into(tokenizer, **settings)
        shards = [Shards.open(folder, split) for split in SPLITS]
        assert tuple(split.num_tokens for split in shards) == counts
        assert [split.num_bytes for split in shards] == [1_003_854, 111_540]


def test_char_knows_the_whole_corpus_and_bpe_the_training_part(prepare_into, write_jsonl):
    source = write_jsonl(['abcabcabcabc'] * 9 + ['xyzxyz'])
    settings = {'corpus': 'jsonl', 'source': source, 'split': 'tail:0.01'}
    folder = prepare_into(TokenizerConfig(kind=TokenizerKind.CHAR), **settings)
    assert texts_of(folder, VALIDATION) == ['xyzxyz']
    bpe = TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=262)
    tokenizer = load_tokenizer(prepare_into(bpe, **settings))
    assert len(tokenizer.encode('abc')) < 3 and len(tokenizer.encode('xyz')) == 3


@pytest.mark.parametrize('moment', [0, 1, 2, 3, 6, 9, 10, 13])
def test_killed_at_any_moment_it_goes_on_to_the_same_shards(corpus, whole, moment):
    child = start(corpus, moment)
    assert child.wait() == -signal.SIGKILL, child.stderr.read()
    [folder] = [path for path in pathlib.Path(corpus.cache_dir).iterdir() if path.is_dir()]
    assert not (folder / MANIFEST).exists()
    with pytest.raises(UserError, match='no finished manifest.json'):
        Shards.open(folder, TRAIN, tokenizer=tokenizers.make_tokenizer(TokenizerConfig(), list))
    assert prepare(corpus, TokenizerConfig(), shard_tokens=4000) == folder
    assert folder.name == whole.name
    assert contents(folder) == contents(whole)


def test_killed_again_and_again_it_gets_done(corpus, whole):
    for _ in range(20):
        child = start(corpus, 7)  # two or three files are renamed in each life
        if child.wait() == 0:
            break
        assert child.returncode == -signal.SIGKILL, child.stderr.read()
    else:
        pytest.fail('no progress from life to life')
    assert contents(pathlib.Path(corpus.cache_dir) / whole.name) == contents(whole)


def test_finished_shards_are_not_made_again(corpus, whole, monkeypatch):
    child = start(corpus, 24)
    assert child.wait() == -signal.SIGKILL, child.stderr.read()
    folder = pathlib.Path(corpus.cache_dir) / whole.name
    before = {path: path.stat().st_mtime_ns for path in folder.glob('*.json')}
    assert len(before) >= 3
    encoded = []
    real = prepare_module.encode_parts

    def watched(parts, tokenizer):
        for batch in real(parts, tokenizer):
            encoded.extend(part.piece.text for part, *_ in batch)
            yield batch

    monkeypatch.setattr(prepare_module, 'encode_parts', watched)
    prepare(corpus, TokenizerConfig(), shard_tokens=4000)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    finished = sum(json.loads(path.read_text())['pieces'] for path in before)
    assert len(encoded) == len(TEXTS) - finished


@pytest.mark.parametrize('damage', ['flip', 'cut', 'remove', 'record'])
def test_a_damaged_shard_is_made_again_when_going_on(corpus, whole, damage):
    child = start(corpus, 24)
    assert child.wait() == -signal.SIGKILL, child.stderr.read()
    path = pathlib.Path(corpus.cache_dir) / whole.name / 'train-00001.tokens'
    data = path.read_bytes()
    if damage == 'flip':
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == 'cut':
        path.write_bytes(data[:-2])
    elif damage == 'remove':
        path.unlink()
    else:
        path.with_suffix('.json').write_text('{"name": ')
    prepare(corpus, TokenizerConfig(), shard_tokens=4000)
    assert contents(path.parent) == contents(whole)


def test_two_processes_prepare_the_same_folder(corpus, whole):
    children = [start(corpus) for _ in range(3)]
    outputs = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], outputs
    folder = pathlib.Path(corpus.cache_dir) / whole.name
    assert contents(folder) == contents(whole)
    renames = sorted(int(out.split()[-1]) for out, _ in outputs)
    # One made it. A process that arrives at the end may record each split as verified.
    assert renames[0] == 0 and renames[1] in (0, 2) and renames[2] > 2


def test_a_waiting_process_takes_over_from_a_killed_one(corpus, whole):
    script = PREPARE_AND_DIE.replace('os.kill(os.getpid(), signal.SIGKILL)', 'signal.pause()')
    first = start(corpus, 9, script)
    folder = pathlib.Path(corpus.cache_dir) / whole.name
    deadline = time.monotonic() + 30
    while not (folder / 'train-00000.json').exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        second = pool.submit(prepare, corpus, TokenizerConfig(), shard_tokens=4000)
        time.sleep(0.3)
        assert not second.done()
        first.kill()
        assert second.result(timeout=30) == folder
    first.wait()
    assert contents(folder) == contents(whole)


def test_what_is_whole_is_only_looked_at(prepare_into, write_jsonl):
    settings = {'corpus': 'jsonl', 'source': write_jsonl(TEXTS), 'split': 'hash:0.2'}
    folder = prepare_into(**settings)
    made = len(prepare_into.progress)
    assert prepare_into(**settings) == folder
    assert len(prepare_into.progress) == made


def test_a_torn_shard_is_refused_and_prepared_again(prepare_into, write_jsonl):
    settings = {'corpus': 'jsonl', 'source': write_jsonl(TEXTS), 'split': 'hash:0.2'}
    folder = prepare_into(**settings)
    before = contents(folder)
    path = folder / 'train-00000.tokens'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match='train-00000.tokens has .* prepare it again'):
        Shards.open(folder, TRAIN)
    assert prepare_into(**settings) == folder
    assert contents(folder) == before


@pytest.mark.parametrize('remembered', [0, 2**26])
@pytest.mark.parametrize('name', ['train-00000.tokens', 'validation-00000.documents'])
def test_flipped_bits_are_refused_and_prepared_again(
    prepare_into, write_jsonl, monkeypatch, name, remembered
):
    monkeypatch.setattr(locations, 'REMEMBERED_BYTES', remembered)
    settings = {'corpus': 'jsonl', 'source': write_jsonl(TEXTS), 'split': 'hash:0.2'}
    folder = prepare_into(**settings)
    split = name.partition('-')[0]
    Shards.open(folder, split)
    before = contents(folder)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f'{split}-00000.tokens is damaged: .* prepare it again'):
        Shards.open(folder, split)
    assert prepare_into(**settings) == folder
    assert contents(folder) == before


def test_large_shards_are_hashed_once(prepare_into, write_jsonl, monkeypatch):
    monkeypatch.setattr(locations, 'REMEMBERED_BYTES', 0)
    folder = prepare_into(corpus='jsonl', source=write_jsonl(TEXTS), split='hash:0.2')
    Shards.open(folder, TRAIN)
    hashed, content_hash = [], ShardInfo.content_hash

    def note(shard, folder) -> str:
        hashed.append(shard.name)
        return content_hash(shard, folder)

    monkeypatch.setattr(ShardInfo, 'content_hash', note)
    Shards.open(folder, TRAIN)
    assert not hashed
    os.utime(folder / f'{TRAIN}-00000.tokens', ns=(0, 0))
    Shards.open(folder, TRAIN)
    assert set(hashed) == {f'{TRAIN}-00000'}, 'it may be another file'


def test_another_setting_is_another_folder(prepare_into, write_jsonl):
    source = write_jsonl(TEXTS)
    settings = {'corpus': 'jsonl', 'source': source, 'split': 'hash:0.2'}
    folders = {prepare_into(**settings)}
    folders.add(prepare_into(**{**settings, 'split': 'hash:0.3'}))
    folders.add(prepare_into(**{**settings, 'corpus': 'text', 'split': 'tail:0.1'}))
    folders.add(prepare_into(TokenizerConfig(kind=TokenizerKind.CHAR), **settings))
    source.write_text(source.read_text() + '{"text": "more"}\n')
    folders.add(prepare_into(**settings))
    assert len(folders) == 5 and all(folder.name.startswith('corpus-') for folder in folders)


@dataclasses.dataclass(kw_only=True)
class NewerConfig(DataConfig):
    lowercase: bool = False


def test_a_new_knob_is_content_unless_it_is_listed(prepare_into, write_jsonl):
    """So that it cannot reuse shards that were prepared with another value of it."""
    assert content_options(NewerConfig(source='a', num_threads=3)) == {}
    assert content_options(NewerConfig(lowercase=True)) == {'lowercase': True}
    names = {field.name for field in dataclasses.fields(DataConfig)}
    assert names > NOT_CONTENT


def test_shards_of_older_versions_stay_valid(prepare_into):
    """The name of the folder has the hash of all settings."""
    settings = {'corpus': 'text', 'source': ROOT / 'tests/golden/alice.txt', 'split': 'tail:0.2'}
    assert prepare_into(**settings).name == 'alice-e1fdbc051d47'
    assert prepare_into(**settings, separator='\n\n').name == 'alice-e7868edb7311'


def test_an_existing_tokenizer_is_known_by_content(prepare_into, write_jsonl, tmp_path):
    settings = {'corpus': 'jsonl', 'source': write_jsonl(TEXTS), 'split': 'hash:0.2'}
    built = prepare_into(TokenizerConfig(kind=TokenizerKind.CHAR), **settings)
    folders = set()
    for name in ('one', 'two'):
        load_tokenizer(built).save(tmp_path / name)
        config = TokenizerConfig(kind=TokenizerKind.CHAR, path=str(tmp_path / name))
        folders.add(prepare_into(config, **settings))
    assert len(folders) == 1


def test_documents_begin_with_the_token_that_begins_texts(prepare_into, write_jsonl, tmp_path):
    settings = {'corpus': 'jsonl', 'source': write_jsonl(['a', 'bc', 'd']), 'split': 'hash:0'}
    plain = ByteTokenizer()
    folders = {}
    for name, bos_id in (('none', None), ('own', 7), ('end', plain.eot_id)):
        tokenizer = plain.with_ends(bos_id=bos_id, eot_id=plain.eot_id)
        tokenizer.save(tmp_path / name)
        folders[name] = prepare_into(TokenizerConfig(path=str(tmp_path / name)), **settings)
        shards = Shards.open(folders[name], TRAIN, tokenizer=tokenizer)
        begin = [7] if name == 'own' else []
        end = [plain.eot_id]
        expected = [*begin, *b'a', *end, *begin, *b'bc', *end, *begin, *b'd']
        assert shards.read(0, shards.num_tokens).tolist() == expected
        (tmp_path / 'text.txt').write_text('bc')
        text = encode_text_file(tmp_path / 'text.txt', tokenizer)
        assert text.read(0, text.num_tokens).tolist() == [*begin, *b'bc']
        identity = tokenizer_identity(TokenizerConfig(), tokenizer, chat=False)
        assert ('begins_documents' in identity) == (name == 'own')
        assert 'begins_documents' not in tokenizer_identity(TokenizerConfig(), tokenizer, chat=True)
    assert len(set(folders.values())) == 3


def test_a_full_disk_is_one_line_and_leaves_nothing_torn(corpus, whole):
    """A limit on the size of files stands for a full disk: writing fails in the middle."""
    child = start(
        corpus,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
        script="import sys; from gpt_jax.errors import UserError\ntry:\n    exec('''"
        + PREPARE_AND_DIE
        + "''')\nexcept UserError as error:\n    print(error); sys.exit(2)",
    )
    output, errors = child.communicate()
    assert child.returncode == 2, errors
    assert 'cannot write' in output and 'free some space' in output and output.count('\n') == 1
    folder = pathlib.Path(corpus.cache_dir)
    assert not list(folder.rglob('*.tmp*')) and not list(folder.rglob('*.tokens'))
    assert not [path for path in folder.iterdir() if path.is_dir()]
    prepare(corpus, TokenizerConfig(), shard_tokens=4000)  # there is room again
    assert contents(folder / whole.name) == contents(whole)


def test_a_folder_that_cannot_be_written_is_one_line(corpus, tmp_path):
    (tmp_path / 'file').write_text('')
    config = dataclasses.replace(corpus, cache_dir=str(tmp_path / 'file' / 'below'))
    with pytest.raises(UserError, match='cannot write .*choose another folder'):
        prepare(config, TokenizerConfig())


def test_one_document_is_split_at_its_tail(prepare_into, write_jsonl, capsys):
    source = write_jsonl(['one document ' * 40])
    folder = prepare_into(corpus='jsonl', source=source, split='hash:0.1')
    assert (
        'its last 10.0% are for validation (config.data.split=tail:0.1' in capsys.readouterr().out
    )
    tail = prepare_into(corpus='jsonl', source=source, split='tail:0.1')
    for split in ('train', 'validation'):
        assert texts_of(folder, split) == texts_of(tail, split)


@pytest.mark.parametrize(
    ('texts', 'split', 'message'),
    [
        (['ab', 'cd'], 'hash:0.00001', 'leaves the validation split .*2 documents'),
        (['', ''], 'hash:0.1', 'the corpus has no text'),
        (['', ''], 'tail:0.1', 'the corpus has no text'),
        (TEXTS, 'middle:0.1', 'config.data.split'),
    ],
)
def test_a_split_without_text_is_refused(
    prepare_into, write_jsonl, tmp_path, texts, split, message
):
    with pytest.raises(UserError, match=message):
        prepare_into(corpus='jsonl', source=write_jsonl(texts), split=split)
    cache = tmp_path / 'cache'
    assert not cache.is_dir() or not [path for path in cache.iterdir() if path.is_dir()]


def test_no_validation_split_on_request(prepare_into, write_jsonl):
    folder = prepare_into(corpus='jsonl', source=write_jsonl(TEXTS), split='hash:0')
    assert texts_of(folder, TRAIN) == TEXTS
    with pytest.raises(UserError, match='no validation split .config.data.split=hash:0'):
        Shards.open(folder, VALIDATION)


def test_text_that_is_not_utf8_leaves_nothing(prepare_into, tmp_path):
    (tmp_path / 'latin.txt').write_bytes('café'.encode('latin-1'))
    with pytest.raises(UserError, match='latin.txt is not UTF-8 at byte 3'):
        prepare_into(corpus='text', source=tmp_path / 'latin.txt', split='tail:0.1')
    assert not [path for path in (tmp_path / 'cache').iterdir() if path.is_dir()]


def test_progress_reaches_the_size_of_the_source(prepare_into, write_jsonl):
    source = write_jsonl(TEXTS)
    prepare_into(corpus='jsonl', source=source, split='tail:0.2')
    measure, progress = prepare_into.progress
    assert (measure.description, progress.description) == ('measure', 'prepare')
    assert progress.total == progress.updates[-1][0] == source.stat().st_size
    assert progress.updates[-1][1]['tokens'] > sum(map(len, TEXTS))


def test_the_run_s_tokenizer_is_that_of_the_shards(prepare_into, write_jsonl, tmp_path):
    settings = {'corpus': 'jsonl', 'source': write_jsonl(TEXTS), 'split': 'hash:0.2'}
    folder = prepare_into(TokenizerConfig(kind=TokenizerKind.CHAR), **settings)
    same = TokenizerConfig(kind=TokenizerKind.CHAR)
    assert make_run_tokenizer(folder, same).fingerprint() == load_tokenizer(folder).fingerprint()
    with pytest.raises(UserError, match='config.tokenizer.kind=char'):
        make_run_tokenizer(folder, TokenizerConfig())
    other = prepare_into(
        same,
        **{**settings, 'source': write_jsonl([f'other {i}' for i in range(60)], 'other.jsonl')},
    )
    same.path = str(other / TOKENIZER)
    with pytest.raises(UserError, match='config.tokenizer.path=.*is not the tokenizer'):
        make_run_tokenizer(folder, same)
    with pytest.raises(UserError, match='config.tokenizer.path'):
        prepare(DataConfig(corpus='shards', source=str(folder)), same)
    same.path = ''
    assert prepare(DataConfig(corpus='shards', source=str(folder)), same) == folder
