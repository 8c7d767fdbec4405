"""Choosing, loading and building a tokenizer: what is read, and every wrong input's message."""

import subprocess
import sys

import pytest

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import (
    SentencePieceAlgorithm,
    TokenizerConfig,
    TokenizerKind,
    load,
    make_tokenizer,
)
from gpt_jax.tokenizer.byte import ByteTokenizer
from gpt_jax.tokenizer.unicode import take_megabytes

TEXT = 'She sells sea shells by the sea shore; the shells she sells are sea shells.\n' * 5
TRAINED = [TokenizerKind.BPE, TokenizerKind.SENTENCEPIECE]


def message_of(config, texts=(TEXT,)):
    with pytest.raises(UserError) as raised:
        make_tokenizer(config, lambda: texts)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def test_import_loads_no_heavy_library():
    code = (
        'import sys, gpt_jax.tokenizer\n'
        "heavy = {'jax', 'tiktoken', 'tokenizers', 'sentencepiece', 'google.protobuf'}\n"
        'assert not heavy & set(sys.modules), heavy & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_sample_stops_at_the_limit():
    def texts():
        yield 'a' * 400_000
        yield 'é' * 400_000
        raise AssertionError('read past the limit')

    sample = take_megabytes(texts(), 1)
    assert [len(text) for text in sample] == [400_000, 300_000]


@pytest.mark.parametrize('kind', TRAINED)
def test_training_reads_train_megabytes_only(kind):
    texts = [TEXT * 14_000, 'ZZZZ QQQQ ' * 100_000]  # the second one starts after 5 MB
    config = TokenizerConfig(kind=kind, vocab_size=277, train_megabytes=1)
    tokenizer = make_tokenizer(config, lambda: texts)
    assert tokenizer.fingerprint() == make_tokenizer(config, lambda: texts[:1]).fingerprint()
    config.train_megabytes = 32
    assert tokenizer.fingerprint() != make_tokenizer(config, lambda: texts).fingerprint()


@pytest.mark.parametrize('kind', [*TRAINED, TokenizerKind.CHAR])
@pytest.mark.parametrize('texts', [(), ('', '')], ids=['no text', 'empty texts'])
def test_empty_corpus(kind, texts):
    assert 'config.data.source has no text' in message_of(
        TokenizerConfig(kind=kind, vocab_size=300), texts
    )


@pytest.mark.parametrize('kind', [*TRAINED, TokenizerKind.CHAR])
def test_surrogates_in_the_corpus(kind):
    assert 'U+DFFF' in message_of(TokenizerConfig(kind=kind, vocab_size=300), ['a\udfff'])


@pytest.mark.parametrize(
    ('kind', 'smallest'), [(TokenizerKind.BPE, 257), (TokenizerKind.SENTENCEPIECE, 259)]
)
@pytest.mark.parametrize('vocab_size', [-5, 0, 256])
def test_vocabulary_too_small_for_anything(kind, smallest, vocab_size):
    message = message_of(TokenizerConfig(kind=kind, vocab_size=vocab_size))
    assert f'config.tokenizer.vocab_size={vocab_size} must be at least {smallest}' in message


@pytest.mark.parametrize('algorithm', SentencePieceAlgorithm)
def test_sentencepiece_says_what_fits(algorithm):
    config = TokenizerConfig(kind=TokenizerKind.SENTENCEPIECE, algorithm=algorithm)
    config.vocab_size = 260
    message = message_of(config)
    assert 'config.tokenizer.vocab_size=260 is too small for this corpus' in message
    config.vocab_size = int(message.split('alone need ')[1].split(';')[0])
    assert make_tokenizer(config, lambda: [TEXT]).vocab_size == config.vocab_size
    config.vocab_size = 5000
    message = message_of(config)
    assert 'config.tokenizer.vocab_size=5000 is more than this corpus can fill' in message
    config.vocab_size = int(message.split('fits is ')[1].split(';')[0])
    assert make_tokenizer(config, lambda: [TEXT]).vocab_size == config.vocab_size


def test_bpe_stops_early_on_a_tiny_corpus():
    config = TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=5000)
    tokenizer = make_tokenizer(config, lambda: ['ab ab ab'])
    assert tokenizer.vocab_size == 256 + len(['ab', ' ab']) + 1
    assert tokenizer.eot_id == tokenizer.vocab_size - 1


@pytest.mark.parametrize('kind', TRAINED)
def test_training_needs_some_text(kind):
    config = TokenizerConfig(kind=kind, vocab_size=300, train_megabytes=0)
    assert 'config.tokenizer.train_megabytes=0' in message_of(config)


@pytest.mark.parametrize('kind', TokenizerKind)
def test_missing_path(kind, tmp_path):
    config = TokenizerConfig(kind=kind, path=str(tmp_path / 'absent'))
    message = message_of(config)
    assert message.startswith('config.tokenizer.path: ')
    assert str(tmp_path / 'absent') in message


@pytest.mark.parametrize('kind', [*TRAINED, TokenizerKind.CHAR])
@pytest.mark.parametrize('content', [b'', b'nonsense', b'{}', b'\xff\xfe'], ids=repr)
def test_damaged_file(kind, content, tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(content)
    message = message_of(TokenizerConfig(kind=kind, path=str(path)))
    assert message.startswith(f'config.tokenizer.path: {path}')


def test_path_of_another_kind(tmp_path):
    ByteTokenizer().save(tmp_path)
    config = TokenizerConfig(kind=TokenizerKind.CHAR, path=str(tmp_path))
    assert 'set config.tokenizer.kind=byte' in message_of(config)


def test_a_folder_of_transformers_is_no_byte_tokenizer(tmp_path):
    (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (tmp_path / 'tokenizer.json').write_text('{}')
    message = message_of(TokenizerConfig(path=str(tmp_path)))
    assert 'the byte tokenizer has no files' in message and 'config.tokenizer.kind=bpe' in message


def test_load_refuses_what_it_did_not_write(tmp_path):
    with pytest.raises(UserError, match=r'cannot read .*tokenizer_config\.json'):
        load(tmp_path)
    for stored in ({'kind': 'morse'}, {'tokenizer_class': 'GPT2Tokenizer'}, ['bpe']):
        files.write_json(tmp_path / 'tokenizer_config.json', stored)
        with pytest.raises(UserError, match='names no tokenizer kind'):
            load(tmp_path)


def test_load_notices_exchanged_files(tmp_path):
    config = TokenizerConfig(kind=TokenizerKind.CHAR)
    make_tokenizer(config, lambda: ['abc']).save(tmp_path)
    files.write_json(tmp_path / 'characters.json', {'characters': 'abd'})
    with pytest.raises(UserError, match='holds another tokenizer'):
        load(tmp_path)


def test_a_folder_of_transformers_is_read_as_files(tmp_path):
    config = TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=270)
    tokenizer = make_tokenizer(config, lambda: [TEXT])
    tokenizer.save(tmp_path)
    files.write_json(tmp_path / 'tokenizer_config.json', {'tokenizer_class': 'GPT2Tokenizer'})
    config.path = str(tmp_path)
    assert make_tokenizer(config, list).fingerprint() == tokenizer.fingerprint()


def test_other_ends_survive_saving(tmp_path):
    """Imported weights may want a token before every text, or know no end."""
    tokenizer = make_tokenizer(TokenizerConfig(kind=TokenizerKind.CHAR), lambda: ['012'])
    begun = tokenizer.with_ends(bos_id=3, eot_id=3)
    assert begun.fingerprint() != tokenizer.fingerprint()
    endless = tokenizer.with_ends(bos_id=None, eot_id=None)
    assert (endless.vocab_size, endless.special_tokens, tokenizer.vocab_size) == (3, {}, 4)
    for number, changed in enumerate([begun, endless]):
        changed.save(tmp_path / str(number))
        restored = load(tmp_path / str(number))
        assert (restored.bos_id, restored.eot_id) == (changed.bos_id, changed.eot_id)
        assert restored.fingerprint() == changed.fingerprint()
        assert restored.vocab_size == changed.vocab_size
