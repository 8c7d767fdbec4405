"""SentencePiece models of Llama 2 and T5 against the library, and models trained here."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from gpt_jax.errors import UserError
from gpt_jax.tokenizer import SentencePieceAlgorithm, TokenizerConfig, TokenizerKind, load
from gpt_jax.tokenizer import sentencepiece as sentencepiece_module
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.tokenizer.sentencepiece_json import to_tokenizer_json

TEXT = 'The cat sat on the mat.\n\tIf x == 12:\n        return the mat to the cat\n' * 5
TEXTS = [
    'hello  world',
    ' leading',
    '  two leading',
    '',
    ' ',
    '\n\n\ta',
    'naïve 日本語 👩‍👩‍👧‍👦 \x00',
    '</s><s><0x41>',
]


@pytest.fixture(scope='module')
def llama(shared_data):
    return shared_data / 'tokenizers/llama2_32k/tokenizer.model'


@pytest.fixture(scope='module')
def t5(shared_data):
    return shared_data / 'tokenizers/sentencepiece_t5_cc_all_32k/sentencepiece.model'


def library_model(text=TEXT, **options):
    """A small model trained by the library alone."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        minloglevel=2,
        **{'model_type': 'bpe', 'vocab_size': 300, 'byte_fallback': True} | options,
    )
    return model.getvalue()


def test_llama_ids_are_the_librarys_and_come_back(llama):
    tokenizer = SentencePieceTokenizer.read(llama)
    library = sentencepiece.SentencePieceProcessor(model_file=str(llama))
    assert tokenizer.lossless
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (32000, 2)
    assert tokenizer.special_tokens == {'<s>': 1, '</s>': 2}
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == library.encode(text)
        assert tokenizer.decode(ids) == library.decode(ids) == text


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(exclude_categories=['Cs']) | st.sampled_from(' ▁a'), max_size=30))
def test_llama_gives_every_text_back(llama_tokenizer, text):
    ids = llama_tokenizer.encode(text)
    assert llama_tokenizer.decode(ids) == text
    stream = llama_tokenizer.stream()
    assert ''.join([stream.push([i]) for i in ids] + [stream.flush()]) == text


@pytest.fixture(scope='module')
def llama_tokenizer(llama):
    return SentencePieceTokenizer.read(llama)


def test_a_continuation_keeps_its_space(llama_tokenizer):
    ids = llama_tokenizer.encode('hello world')
    stream = llama_tokenizer.stream()
    assert stream.push(ids[:1]) == 'hello'
    assert stream.push(ids[1:]) == ' world'


def test_t5_is_the_librarys_and_lossy(t5):
    tokenizer = SentencePieceTokenizer.read(t5)
    library = sentencepiece.SentencePieceProcessor(model_file=str(t5))
    assert not tokenizer.lossless
    assert tokenizer.eot_id == library.eos_id() == tokenizer.special_tokens['</s>']
    for text in [*TEXTS, 'ＦＵＬＬ width ▁ fi']:
        ids = tokenizer.encode(text)
        assert ids == library.encode(text)
        assert tokenizer.decode(ids).strip() == library.decode(ids).strip()
    assert tokenizer.decode(tokenizer.encode('  two   spaces')) == 'two spaces'


@pytest.mark.parametrize('name', ['llama', 't5'])
def test_save_keeps_the_file(name, request, tmp_path):
    path = request.getfixturevalue(name)
    tokenizer = SentencePieceTokenizer.read(path)
    tokenizer.save(tmp_path)
    assert (tmp_path / 'tokenizer.model').read_bytes() == path.read_bytes()
    assert load(tmp_path).fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize('algorithm', SentencePieceAlgorithm)
def test_training(algorithm):
    config = TokenizerConfig(kind=TokenizerKind.SENTENCEPIECE, vocab_size=283, algorithm=algorithm)
    tokenizer = SentencePieceTokenizer.build(config, lambda: [TEXT])
    assert tokenizer.lossless
    assert tokenizer.vocab_size == 283
    assert tokenizer.special_tokens == {'<|endoftext|>': 1}
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode(TEXT)) < len(TEXT)
    assert tokenizer.id_to_bytes(tokenizer.encode('\n')[0]) == b'\n'


def test_training_is_silent_and_takes_reserved_characters(capfd):
    config = TokenizerConfig(kind=TokenizerKind.SENTENCEPIECE, vocab_size=275)
    config.algorithm = SentencePieceAlgorithm.BPE
    line = 'tac tac tac tic ▁ tac ▅ toe \x00 \t' + 'x' * 5000
    tokenizer = SentencePieceTokenizer.build(config, lambda: [line])
    assert any(b'tac' in tokenizer.id_to_bytes(i) for i in range(275))
    assert tokenizer.decode(tokenizer.encode(line)) == line
    assert capfd.readouterr() == ('', '')


def test_a_model_without_an_end_gets_one():
    model = library_model(eos_id=-1, bos_id=-1)
    tokenizer = SentencePieceTokenizer(model, name='test')
    assert tokenizer.special_tokens == {'<|endoftext|>': 300}
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (301, 300)
    assert tokenizer.decode([*tokenizer.encode('a cat'), 300]) == 'a cat'


def test_an_end_of_text_piece_comes_before_eos():
    model = library_model(control_symbols='<|endoftext|>')
    tokenizer = SentencePieceTokenizer(model, name='test')
    assert tokenizer.eot_id == tokenizer.special_tokens['<|endoftext|>'] != 2


EXPORTED = {
    'identity': {},
    'no prefix': {'add_dummy_prefix': False},
    'nfkc': {'normalization_rule_name': 'nmt_nfkc'},
    'trims': {'remove_extra_whitespaces': True},
    'as trained by default': {
        'normalization_rule_name': 'nmt_nfkc',
        'remove_extra_whitespaces': True,
    },
    'no bytes': {'byte_fallback': False, 'vocab_size': 50},
    'no bytes, trims': {
        'byte_fallback': False,
        'vocab_size': 50,
        'remove_extra_whitespaces': True,
    },
    'pieces of the user': {'user_defined_symbols': ['<tool>', '▁▁', 'cat']},
}


@pytest.mark.parametrize('model_type', ['bpe', 'unigram'])
@pytest.mark.parametrize('options', EXPORTED.values(), ids=EXPORTED)
def test_the_exported_file_gives_the_librarys_ids(options, model_type):
    kind = {'model_type': model_type, 'hard_vocab_limit': model_type == 'bpe'}
    # The characters of such names are known, else the library takes the names themselves.
    model = library_model(TEXT + ' '.join('<0x41unk>') * 9, **IDENTITY | kind | options)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    spec = SentencePieceTokenizer(model, name='test').tokenizer_json()
    library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    # What the trained pieces do not have is one unknown token there, and is decoded as such.
    known = 'byte_fallback' not in options
    more = [' a  cat\n', '\n the cat \t', '   ', '<0x41> <unk>', 'a<tool>cats  <tool>']
    for text in TEXTS[:-1] + more:  # the names of special tokens are these there
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids == processor.encode(text), text
        if known:
            assert library.decode(ids) == processor.decode(ids), text


@pytest.mark.parametrize(
    ('part', 'key', 'value', 'said'),
    [
        ('trainer_spec', 'treat_whitespace_as_suffix', True, 'puts spaces behind words'),
        ('normalizer_spec', 'escape_whitespaces', False, 'leaves spaces as they are'),
        ('denormalizer_spec', 'precompiled_charsmap', b'x', 'rewrites what it decodes'),
    ],
)
def test_what_no_tokenizer_json_says(part, key, value, said):
    proto = sentencepiece_model_pb2.ModelProto.FromString(library_model(**IDENTITY))
    setattr(getattr(proto, part), key, value)
    with pytest.raises(UserError, match=f'{said}, which no tokenizer.json says'):
        to_tokenizer_json(proto.SerializeToString(), special_tokens={})


IDENTITY = {'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}


@pytest.mark.parametrize(
    ('options', 'lossless'),
    [
        ({}, True),
        ({'add_dummy_prefix': False}, True),
        ({'normalization_rule_name': 'nmt_nfkc'}, False),
        ({'remove_extra_whitespaces': True}, False),
        ({'byte_fallback': False, 'vocab_size': 50}, False),
        ({'treat_whitespace_as_suffix': True}, False),
    ],
    ids=['identity', 'no prefix', 'nfkc', 'trims', 'no bytes', 'suffix'],
)
def test_lossless_is_true_exactly_where_text_comes_back(options, lossless):
    tokenizer = SentencePieceTokenizer(library_model(**IDENTITY | options), name='test')
    assert tokenizer.lossless == lossless
    came_back = [tokenizer.decode(tokenizer.encode(text)) == text for text in [*TEXTS, '▁', 'ﬁ']]
    assert all(came_back) == lossless


def test_user_defined_pieces_are_text():
    model = library_model(user_defined_symbols='<tool>', **IDENTITY)
    tokenizer = SentencePieceTokenizer(model, name='test')
    ids = tokenizer.encode('a<tool>b')
    assert b'<tool>' in [tokenizer.id_to_bytes(i) for i in ids]
    assert tokenizer.decode(ids) == 'a<tool>b'


def test_training_lines_fit_the_library():
    lines = list(sentencepiece_module._training_lines(['😀' * 3000 + '\nb▁c▅d', '']))
    assert max(len(line.encode()) for line in lines) <= 4192
    assert ''.join(lines) == '😀' * 3000 + 'bcd'


def test_a_missing_or_truncated_model(llama, tmp_path):
    with pytest.raises(UserError, match='does not exist or has no tokenizer.model'):
        SentencePieceTokenizer.read(tmp_path)
    (tmp_path / 'tokenizer.model').write_bytes(llama.read_bytes()[:100_000])
    with pytest.raises(UserError, match='is not a SentencePiece model'):
        SentencePieceTokenizer.read(tmp_path)
