"""Properties of every tokenizer, over the table."""

import json
import pickle

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.tokenizer import (
    TOKENIZERS,
    SentencePieceAlgorithm,
    TokenizerConfig,
    TokenizerKind,
    load,
    make_tokenizer,
)

ENGLISH = (
    'It was the best of times, it was the worst of times, it was the age of wisdom, it was the '
    'age of foolishness; 12 cats sat on 345 mats.\n\tdef area(radius):\n        return 3.14 * '
    "radius ** 2  # it's what they'd call a circle\n\n"
)
AWKWARD = [
    '',
    ' ',
    ' leading and trailing ',
    'two  spaces   three',
    '\n\n\t\r\n\r',
    'NUL \x00 and \x01 controls \x1c\x85\u2028',
    'family 👩‍👩‍👧‍👦, skin 👍🏽, flag 🇪🇸',
    'e\u0301 combining a\u0308\u0323',
    '日本語の文字と한국어',
    'שלום עולם مرحبا بالعالم',
    'non-breaking\u00a0space\u3000and\ufeffmark',
    'SentencePiece’s own ▁ and ▁▁two ▅ ⁇ ',
    '<|endoftext|></s><s><unk><0x41>[CLS]',
    'noncharacter \uffff astral \U0010ffff replacement \ufffd',
    'x' * 5000,
]
FORGED = 'cat<|endoftext|>mat'
CONFIGS = {
    'byte': TokenizerConfig(kind=TokenizerKind.BYTE),
    'char': TokenizerConfig(kind=TokenizerKind.CHAR),
    'symbol': TokenizerConfig(kind=TokenizerKind.SYMBOL),
    'sentencepiece': TokenizerConfig(kind=TokenizerKind.SENTENCEPIECE, vocab_size=308),
    'sentencepiece-bpe': TokenizerConfig(
        kind=TokenizerKind.SENTENCEPIECE, vocab_size=320, algorithm=SentencePieceAlgorithm.BPE
    ),
    'bpe': TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=320),
}


def corpus(config):
    """Ordinary text; the alphabets of char and symbol must hold the awkward one too."""
    more = {TokenizerKind.CHAR: AWKWARD, TokenizerKind.SYMBOL: [*AWKWARD, FORGED, 'cat mat']}
    return [ENGLISH] * 3 + more.get(config.kind, [])


@pytest.fixture(scope='module', params=CONFIGS)
def tokenizer(request):
    config = CONFIGS[request.param]
    return make_tokenizer(config, lambda: corpus(config))


def texts_for(tokenizer):
    """Every str that the tokenizer takes."""
    if tokenizer.kind == TokenizerKind.CHAR:
        return st.text(st.sampled_from(tokenizer.characters), max_size=40)
    if tokenizer.kind == TokenizerKind.SYMBOL:
        return st.lists(st.sampled_from(tokenizer.symbols), max_size=10).map(' '.join)
    alphabet = st.characters(exclude_categories=['Cs'])
    return st.text(alphabet | st.sampled_from(' \n\t▁▅a'), max_size=40)


def test_every_kind_is_here():
    assert {config.kind for config in CONFIGS.values()} == set(TOKENIZERS) == set(TokenizerKind)


@pytest.mark.parametrize('text', AWKWARD, ids=range(len(AWKWARD)))
def test_awkward_text_comes_back(tokenizer, text):
    assert tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_text_comes_back_whole_and_streamed(tokenizer, data):
    text = data.draw(texts_for(tokenizer))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    cut = data.draw(st.integers(0, len(ids)))
    stream = tokenizer.stream()
    assert stream.push(ids[:cut]) + stream.push(ids[cut:]) + stream.flush() == text


@pytest.mark.parametrize('text', AWKWARD, ids=range(len(AWKWARD)))
def test_stream_never_shows_half_a_character(tokenizer, text):
    stream = tokenizer.stream()
    shown = ''
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown)
    assert shown + stream.flush() == text


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_stream_of_any_ids_equals_decode(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    stream = tokenizer.stream()
    assert ''.join([stream.push([i]) for i in ids] + [stream.flush()]) == tokenizer.decode(ids)


def test_batch_equals_single(tokenizer):
    batch = tokenizer.encode_batch(AWKWARD)
    assert {ids.dtype for ids in batch} == {np.dtype(np.uint32)}
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in AWKWARD]
    assert tokenizer.encode_batch([]) == []


def test_ids_are_in_the_vocabulary(tokenizer):
    ids = np.concatenate(tokenizer.encode_batch(AWKWARD))
    assert ids.max() < tokenizer.vocab_size
    assert 0 <= tokenizer.eot_id < tokenizer.vocab_size
    assert tokenizer.eot_id in tokenizer.special_tokens.values()


def test_text_cannot_forge_the_end(tokenizer):
    name = next(n for n, i in tokenizer.special_tokens.items() if i == tokenizer.eot_id)
    text = FORGED.replace('<|endoftext|>', name)
    assert tokenizer.eot_id not in tokenizer.encode(text)
    ids = tokenizer.encode(text, allow_special=True)
    assert ids == [*tokenizer.encode('cat'), tokenizer.eot_id, *tokenizer.encode('mat')]
    assert (
        tokenizer.decode(ids) == 'cat mat' if tokenizer.kind == TokenizerKind.SYMBOL else 'catmat'
    )
    assert tokenizer.id_to_bytes(tokenizer.eot_id) == b''


def test_the_library_reads_the_exported_file(tokenizer):
    """The same ids, but for the names of special tokens and SentencePiece's own space."""
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.tokenizer_json()))
    assert library.get_vocab_size() == tokenizer.vocab_size
    for name, token_id in tokenizer.special_tokens.items():
        assert library.token_to_id(name) == token_id
    apart = [*tokenizer.special_tokens, '\u2581']
    for text in [ENGLISH, *AWKWARD]:
        if any(name in text for name in apart):
            continue
        ids = tokenizer.encode(text)
        assert library.encode(text, add_special_tokens=False).ids == ids
        assert library.decode(ids) == text


def test_bytes_of_ids_join_to_the_text(tokenizer):
    for text in AWKWARD:
        joined = b''.join(tokenizer.id_to_bytes(i) for i in tokenizer.encode(text))
        apart = bool(text) and tokenizer.kind == TokenizerKind.SYMBOL  # a space before each
        assert joined == b' ' * apart + text.encode()


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'a')
    loaded = load(tmp_path / 'a')
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.eot_id == tokenizer.eot_id
    assert loaded.special_tokens == tokenizer.special_tokens
    assert loaded.lossless == tokenizer.lossless
    assert [loaded.encode(text) for text in AWKWARD] == [tokenizer.encode(t) for t in AWKWARD]
    loaded.save(tmp_path / 'b')
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in 'ab'
    ]
    assert contents[0] == contents[1]


def test_saved_folder_is_a_path_to_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    config = TokenizerConfig(kind=tokenizer.kind, path=str(tmp_path))
    assert make_tokenizer(config, list).fingerprint() == tokenizer.fingerprint()


def test_fingerprint_is_a_function_of_the_corpus_and_the_config():
    def fingerprints(extra):
        return [
            make_tokenizer(config, lambda config=config: [*corpus(config), *extra]).fingerprint()
            for config in CONFIGS.values()
        ]

    first, changed = fingerprints([]), fingerprints(['sat wisdom øøø ' * 20])
    assert first == fingerprints([])
    assert len(set(first)) == len(CONFIGS)
    assert [a == b for a, b in zip(first, changed, strict=True)] == [
        kind == TokenizerKind.BYTE for kind in (config.kind for config in CONFIGS.values())
    ]


def test_pickle(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.encode(text) for text in AWKWARD] == [tokenizer.encode(t) for t in AWKWARD]
    assert copy.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize('wrong', [-1, 10**6])
def test_ids_outside_the_vocabulary(tokenizer, wrong):
    for use in (tokenizer.id_to_bytes, lambda i: tokenizer.decode([0, i])):
        with pytest.raises(UserError, match=f'token id {wrong} is not in the vocabulary'):
            use(wrong)
    stream = tokenizer.stream()
    with pytest.raises(UserError, match=f'token id {wrong}'):
        stream.push(np.array([wrong]))


@pytest.mark.parametrize('text', ['\ud800', 'fine \udcff', '\ude00\ud83d'], ids=range(3))
def test_lone_surrogates_are_refused(tokenizer, text):
    for encode in (tokenizer.encode, lambda t: tokenizer.encode_batch(['good', t])):
        with pytest.raises(UserError, match=r'lone surrogate U\+D'):
            encode(text)
