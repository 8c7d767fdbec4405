"""GPT-2's own vocabulary against published ids, and byte-level BPE trained here."""

import itertools
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind, make_tokenizer
from gpt_jax.tokenizer import bpe as bpe_module
from gpt_jax.tokenizer.bpe import BpeTokenizer
from gpt_jax.tokenizer.bpe_vocabulary import byte_characters, parse_gpt2
from gpt_jax.tokenizer.tokenizer_json import JsonTokenizer

TEXT = "The cat sat on the mat; it's what cats do on mats, the whole day, 365 days a year.\n" * 4
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, database=None)
BLANKS = [' ', '\n', '\t', '\r', '\x1c', '\x85', '\u00a0', '\u2028', '\u3000']


@pytest.fixture(scope='module')
def gpt2(shared_data):
    return BpeTokenizer.read(shared_data / 'tokenizers/gpt2/tokenizer.json')


@pytest.fixture(scope='module')
def trained():
    config = TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=290)
    return make_tokenizer(config, lambda: [TEXT])


def spec_of(tokenizer, folder):
    tokenizer.save(folder)
    return files.read_json(folder / 'tokenizer.json')


def test_gpt2_ids_are_the_published_ones(gpt2, shared_data):
    golden = json.loads((shared_data / 'reference/gpt2_bpe_golden.json').read_text('utf-8'))
    assert len(golden) == 27
    for row in golden:
        assert gpt2.encode(row['text']) == row['ids_ordinary']
        assert gpt2.encode(row['text'], allow_special=True) == row['ids_allowed_special']
        assert gpt2.decode(row['ids_ordinary']) == row['text']
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    assert type(gpt2) is BpeTokenizer  # tiktoken encodes, not the slower library


def test_shakespeare_has_the_token_counts_of_nanogpt(gpt2, shared_data):
    text = (shared_data / 'corpora/tinyshakespeare/input.txt').read_text(encoding='utf-8')
    cut = int(len(text) * 0.9)
    train, validation = gpt2.encode_batch([text[:cut], text[cut:]])
    assert (len(train), len(validation)) == (301_966, 36_059)
    assert gpt2.decode(train) + gpt2.decode(validation) == text


@pytest.mark.parametrize('names', [('encoder.json', 'vocab.bpe'), ('vocab.json', 'merges.txt')])
@pytest.mark.parametrize('by_file', [False, True], ids=['folder', 'file'])
def test_gpt2_from_its_pair_of_files(gpt2, shared_data, tmp_path, names, by_file):
    for original, name in zip(('encoder.json', 'vocab.bpe'), names, strict=True):
        shutil.copy(shared_data / 'tokenizers/gpt2' / original, tmp_path / name)
    for path in [tmp_path / name for name in names] if by_file else [tmp_path]:
        tokenizer = BpeTokenizer.read(path)
        assert type(tokenizer) is BpeTokenizer
        assert tokenizer.fingerprint() == gpt2.fingerprint()


@pytest.mark.parametrize('character', ['a', '!', '7', '日', *BLANKS])
def test_a_million_of_one_character(gpt2, character):
    text = f'{character * 1_000_000}x'
    (ids,) = gpt2.encode_batch([text])
    assert gpt2.decode(ids) == text


@PROPERTY
@given(
    parts=st.lists(st.sampled_from([*BLANKS, "'s", 'a', '1', '!', 'é', '日', '😀']), max_size=60),
    size=st.integers(1, 8),
)
def test_cutting_changes_no_id(gpt2, parts, size):
    text = ''.join(parts)
    whole = gpt2.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_module, '_CHUNK_CHARACTERS', size)
        assert gpt2.encode(text) == whole
        assert ''.join(bpe_module._cut(text)) == text


def test_long_texts_are_cut():
    chunks = bpe_module._cut('many words ' * 50_000)
    assert len(chunks) > 3
    assert max(map(len, chunks)) < 2 * bpe_module._CHUNK_CHARACTERS


def test_a_trained_vocabulary_is_laid_out_as_gpt2(trained):
    alphabet = [trained.id_to_bytes(i) for i in range(256)]
    assert alphabet[:3] == [b'!', b'"', b'#']
    assert sorted(alphabet) == [bytes([i]) for i in range(256)]
    assert trained.special_tokens == {'<|endoftext|>': 289}
    assert (trained.vocab_size, trained.eot_id) == (290, 289)
    assert len(trained.encode(TEXT)) < len(TEXT) * 0.6


def test_a_trained_vocabulary_equals_the_library_that_trained_it(trained, tmp_path):
    import tokenizers

    trained.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    for text in (TEXT, "mats'll  sit\n\n on 日本 the days "):
        assert trained.encode(text) == library.encode(text).ids
        assert library.decode(trained.encode(text)) == text
    assert library.encode('<|endoftext|>').ids == [trained.eot_id]


@pytest.mark.parametrize(
    'text',
    ['a' * 60_000 + ' b', 'aaa aa aaaa aaaaa ' * 50, 'ab' * 5000, ' ' * 60_000 + 'x', '\0' * 500],
    ids=['letters', 'overlaps', 'pairs', 'blanks', 'NUL'],
)
def test_training_on_repetition(text):
    config = TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=300)
    tokenizer = make_tokenizer(config, lambda: [text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < len(text) / 2


@PROPERTY
@given(words=st.lists(st.text('ab', min_size=1, max_size=12), min_size=1, max_size=30))
def test_tiktoken_takes_whatever_training_gives(words):
    import tokenizers

    text = ' '.join(words)
    config = TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=290)
    tokenizer = make_tokenizer(config, lambda: [text])
    spec = json.dumps(tokenizer._vocabulary.to_json())
    assert tokenizer.encode(text) == tokenizers.Tokenizer.from_str(spec).encode(text).ids


def test_byte_characters_are_gpt2s():
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert (characters[ord(' ')], characters[ord('\n')], characters[ord('a')]) == ('Ġ', 'Ċ', 'a')
    assert characters[0xAD] == 'Ń'


def change_split(spec):
    spec['pre_tokenizer']['add_prefix_space'] = True


def change_normalizer(spec):
    spec['normalizer'] = {'type': 'NFC'}


def change_order(spec):
    spec['model']['merges'].reverse()


def change_added(spec):
    spec['added_tokens'][0]['special'] = False


def change_vocabulary(spec):
    spec['model']['vocab']['unmade'] = len(spec['model']['vocab'])


def change_alphabet(spec):
    del spec['model']['vocab']['ÿ']


@pytest.mark.parametrize(
    'change',
    [
        change_split,
        change_normalizer,
        change_order,
        change_added,
        change_vocabulary,
        change_alphabet,
    ],
)
def test_what_is_not_gpt2_style_goes_to_the_library(trained, tmp_path, change):
    spec = spec_of(trained, tmp_path)
    assert parse_gpt2(spec) is not None
    change(spec)
    assert parse_gpt2(spec) is None
    files.write_json(tmp_path / 'tokenizer.json', spec)
    assert type(BpeTokenizer.read(tmp_path)) is JsonTokenizer


def test_unreachable_merges_go_to_the_library(tmp_path):
    """tiktoken would write 'abc' where the pairs of the file never make it."""
    alphabet = byte_characters()
    merges = ['b c', 'a b', 'ab c']  # b and c join first, so 'ab c' never happens
    made = [*alphabet, *(merge.replace(' ', '') for merge in merges)]
    files.write_json(tmp_path / 'vocab.json', {token: i for i, token in enumerate(made)})
    (tmp_path / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges), encoding='utf-8')
    tokenizer = BpeTokenizer.read(tmp_path)
    assert type(tokenizer) is JsonTokenizer
    assert [tokenizer.id_to_bytes(i) for i in tokenizer.encode('abc')] == [b'a', b'bc']


def test_the_rule_spelt_out_is_gpt2_style(trained, tmp_path):
    spec = spec_of(trained, tmp_path)
    rule = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    byte_level = spec['pre_tokenizer'] | {'use_regex': False}
    split = {'type': 'Split', 'pattern': {'Regex': rule}, 'behavior': 'Isolated', 'invert': False}
    spec['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': [split, byte_level]}
    assert parse_gpt2(spec) == parse_gpt2(spec_of(trained, tmp_path))
    split['pattern'] = {'Regex': rule.replace('{N}+', '{N}{1,3}')}
    assert parse_gpt2(spec) is None


def test_fingerprint_tells_ids_apart(trained, tmp_path):
    spec = spec_of(trained, tmp_path)
    vocab = spec['model']['vocab']
    vocab['!'], vocab['"'] = vocab['"'], vocab['!']
    assert BpeTokenizer(parse_gpt2(spec)).fingerprint() != trained.fingerprint()


@pytest.mark.parametrize('damage', ['encoder', 'merges', 'missing'])
def test_damaged_pair(shared_data, tmp_path, damage):
    alphabet = {token: i for i, token in enumerate(byte_characters())}
    files.write_json(tmp_path / 'encoder.json', [] if damage == 'encoder' else alphabet)
    if damage != 'missing':
        (tmp_path / 'vocab.bpe').write_bytes(b'\xff' if damage == 'merges' else b'a b\n')
    named = 'encoder.json' if damage == 'encoder' else 'vocab.bpe'
    with pytest.raises(UserError, match=named) as raised:
        BpeTokenizer.read(tmp_path)
    assert '\n' not in str(raised.value)


def test_batches_keep_their_order(trained):
    texts = [f'{i} cats ' * (i % 7) for i in range(500)]
    ids = itertools.chain.from_iterable(trained.encode_batch(texts))
    assert trained.decode(list(ids)) == ''.join(texts)
