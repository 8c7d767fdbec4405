"""tokenizer.json files of other families, built here with the library that reads them."""

import json
import pickle

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind, load, make_tokenizer
from gpt_jax.tokenizer.bpe import BpeTokenizer
from gpt_jax.tokenizer.tokenizer_json import JsonTokenizer

TEXT = 'the cat sat on the mat. the dog ate the cat, the mat and the hat! naïve 日本語 ' * 5
TEXTS = ['the cat sat.', ' the  hat', 'naïve 日本語 😀', "don't", 'a\x00b', 'x' * 3000, '']


def llama3():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    rule = Regex(r'\p{N}{1,3}| ?\p{L}+|[^\p{L}\p{N}]')
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(rule, 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(['<|begin_of_text|>', '<|end_of_text|>'])
    return tokenizer


def llama2():
    tokens = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
    tokens += ['▁', 't', 'h', 'e', 'a', '▁t', '▁th', '▁the', 'at']
    merges = [('▁', 't'), ('▁t', 'h'), ('▁th', 'e'), ('a', 't')]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        unk_token='<unk>',
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace('▁', ' '),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(' ', 1, 0),
        ]
    )
    tokenizer.add_special_tokens(['<s>', '</s>'])
    return tokenizer


def unigram(unk_token='<unk>'):
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80,
        unk_token=unk_token,
        special_tokens=[unk_token] if unk_token else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def wordpiece():
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=80, special_tokens=['[UNK]', '[CLS]'], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


FAMILIES = {'llama3': llama3, 'llama2': llama2, 'unigram': unigram, 'wordpiece': wordpiece}


@pytest.fixture(params=FAMILIES)
def library(request):
    return FAMILIES[request.param]()


def read(library, folder):
    library.save(str(folder / 'tokenizer.json'))
    config = TokenizerConfig(kind=TokenizerKind.BPE, path=str(folder))
    tokenizer = make_tokenizer(config, list)
    assert type(tokenizer) is JsonTokenizer
    return tokenizer


def ids_of(library, text):
    return library.encode(text, add_special_tokens=False).ids


def test_ids_and_text_are_the_librarys(library, tmp_path):
    tokenizer = read(library, tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == ids_of(library, text)
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)
        stream = tokenizer.stream()
        streamed = ''.join([stream.push([i]) for i in ids] + [stream.flush()])
        assert streamed == tokenizer.decode(ids)
        if tokenizer.lossless:
            assert tokenizer.decode(ids) == text
    assert [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)] == [
        tokenizer.encode(text) for text in TEXTS
    ]


def test_only_byte_level_is_lossless(tmp_path):
    assert read(llama3(), tmp_path).lossless
    assert not any(read(make(), tmp_path).lossless for make in (llama2, unigram, wordpiece))
    normalizing = llama3()
    normalizing.normalizer = normalizers.NFC()
    assert not read(normalizing, tmp_path).lossless
    stripping = llama3()
    stripping.add_tokens([AddedToken('cat', lstrip=True)])
    assert not read(stripping, tmp_path).lossless


def test_save_load_and_pickle(library, tmp_path):
    tokenizer = read(library, tmp_path)
    tokenizer.save(tmp_path / 'saved')
    texts = [*TEXTS, *tokenizer.special_tokens]
    for copy in (load(tmp_path / 'saved'), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint() == tokenizer.fingerprint()
        assert [copy.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize(
    ('make', 'name', 'eot_id'),
    [(llama3, '<|end_of_text|>', None), (llama2, '</s>', 2), (unigram, '<|endoftext|>', None)],
)
def test_end_of_text(make, name, eot_id, tmp_path):
    tokenizer = read(make(), tmp_path)
    assert tokenizer.special_tokens[name] == tokenizer.eot_id
    assert tokenizer.eot_id == (tokenizer.vocab_size - 1 if eot_id is None else eot_id)


def test_text_cannot_forge_special_tokens(tmp_path):
    tokenizer = read(llama3(), tmp_path)
    assert not set(tokenizer.encode('<|end_of_text|>')) & set(tokenizer.special_tokens.values())
    ids = tokenizer.encode('a<|end_of_text|>', allow_special=True)
    assert ids == [*tokenizer.encode('a'), tokenizer.eot_id]


def test_the_longest_special_token_wins(tmp_path):
    library = llama3()
    library.add_special_tokens(['<|end', '<|end_of_text|>more'])
    tokenizer = read(library, tmp_path)
    for name in ('<|end_of_text|>', '<|end_of_text|>more', '<|end'):
        assert tokenizer.encode(name, allow_special=True) == [tokenizer.special_tokens[name]]


@pytest.mark.parametrize('scheme', ['first', 'always', 'never'])
@pytest.mark.parametrize('strips', [False, True])
def test_around_special_tokens_as_in_the_library(scheme, strips, tmp_path):
    """A space that is put before a text is not always put behind a special token."""
    library = unigram()
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    library.decoder = decoders.Metaspace(prepend_scheme=scheme)
    token = AddedToken('<|im_start|>', lstrip=strips, rstrip=strips, normalized=False)
    library.add_special_tokens([token, '</s>'])
    library.save(str(tmp_path / 'tokenizer.json'))
    tokenizer = BpeTokenizer.read(tmp_path)
    for text in ('the cat', '<|im_start|>the cat', 'the <|im_start|> cat</s>the hat', ''):
        for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
            ids = each.encode(text, allow_special=True)
            assert ids == library.encode(text, add_special_tokens=False).ids, text
        if text.startswith('<'):  # so it goes on in the same way
            assert tokenizer.encode(text, allow_special=True, continues=True) == ids
    inside = tokenizer.encode('at</s>the hat', allow_special=True, continues=True)
    end = library.encode('</s>the hat', add_special_tokens=False).ids
    assert inside == [*tokenizer.encode('at', continues=True), *end]


def test_ids_that_a_vocabulary_skips_are_no_text(tmp_path):
    spec = json.loads(llama3().to_str())
    spec['added_tokens'] = []
    vocabulary = spec['model']['vocab']
    last = vocabulary[max(vocabulary, key=vocabulary.get)] = max(vocabulary.values()) + 3
    (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
    tokenizer = BpeTokenizer.read(tmp_path)
    assert tokenizer.vocab_size == last + 2  # and the end of a text
    assert tokenizer.id_to_bytes(last - 1) == b''
    assert tokenizer.decode([*tokenizer.encode('the cat'), last - 2]) == 'the cat'


def test_truncation_and_padding_are_ignored(tmp_path):
    library = llama3()
    library.enable_truncation(2)
    library.enable_padding(length=9)
    tokenizer = read(library, tmp_path)
    assert tokenizer.decode(tokenizer.encode('the cat sat')) == 'the cat sat'


def test_added_words_are_decoded_as_the_library_does(tmp_path):
    """Gemma writes runs of spaces as words that were added."""
    library = unigram()
    library.add_tokens(['\u2581\u2581\u2581'])
    tokenizer = read(library, tmp_path)
    token_id = library.token_to_id('\u2581\u2581\u2581')
    assert tokenizer.id_to_bytes(token_id) == b'   '


SPOILT = {
    'far id': (lambda spec: spec['model']['vocab'].update(zz=10**9), 'id 1000000000 is far'),
    'one id': (lambda spec: spec['model']['vocab'].update(zz=1), 'two tokens have one id'),
    'text': (lambda spec: spec['model']['vocab'].update(zz='1'), 'is not a tokenizer.json'),
    'added': (lambda spec: spec.update(added_tokens=[{'id': None}]), 'is not a tokenizer.json'),
    'no model': (lambda spec: spec.pop('model'), 'it has no model'),
}


@pytest.mark.parametrize(('spoil', 'message'), SPOILT.values(), ids=SPOILT)
def test_ids_are_checked_before_anything_is_listed(spoil, message, tmp_path):
    spec = json.loads(llama3().to_str())
    spoil(spec)
    (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
    with pytest.raises(UserError, match=message) as error:
        BpeTokenizer.read(tmp_path)
    assert '\n' not in str(error.value)


def test_deep_nesting(tmp_path):
    (tmp_path / 'tokenizer.json').write_text('{"a":' * 10**5 + '1' + '}' * 10**5)
    with pytest.raises(UserError, match='is not valid JSON'):
        BpeTokenizer.read(tmp_path)


def test_added_words_keep_their_text(tmp_path):
    library = llama3()
    library.add_tokens(['naïve word'])
    tokenizer = read(library, tmp_path)
    ids = tokenizer.encode('a naïve word')
    assert tokenizer.id_to_bytes(ids[-1]) == 'naïve word'.encode()
    assert tokenizer.decode(ids) == 'a naïve word'


def test_unknown_character_without_an_unknown_token(tmp_path):
    tokenizer = read(unigram(unk_token=None), tmp_path)
    with pytest.raises(UserError, match=r'tokenizer\.json cannot encode the text'):
        tokenizer.encode('😀')


def test_not_a_tokenizer(tmp_path):
    for spec in ({}, [], {'model': {'type': 'BPE'}}, json.loads(llama3().to_str()) | {'model': 1}):
        files.write_json(tmp_path / 'tokenizer.json', spec)
        config = TokenizerConfig(kind=TokenizerKind.BPE, path=str(tmp_path))
        with pytest.raises(UserError, match='is not a tokenizer.json') as raised:
            make_tokenizer(config, list)
        assert '\n' not in str(raised.value)
