"""Tokenizers in JavaScript: ids and texts are those of Python, on awkward texts."""

import json

import pytest

from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerKind, make_tokenizer
from gpt_jax.tokenizer.bpe import BpeTokenizer
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.tokenizer.tokenizer_json import JsonTokenizer
from gpt_jax.weights.gguf_tokenizer import RULES
from gpt_jax.weights.web_tokenizer import describe_tokenizer
from tests.contracts.test_tokenizers import AWKWARD, CONFIGS, ENGLISH, FORGED, corpus
from tests.tokenizer.test_sentencepiece import library_model
from tests.web.sessions import Sessions
from tests.weights.random_source import make_model
from tests.weights.test_llama2c_export import llama_tokenizer

MORE = [
    ENGLISH,
    FORGED,
    "I'm you'll WE'VE they'Re he'd it'S ISN'T \u017f'\u017f",
    '1234567890 3.14159 1,000,000 \u0661\u0662 \u2167 \u00bd',
    'tabs\tand\nnewlines\n\n\nend  \n \n  x \x85 \u2028y\ufeff z',
    'def f(x):\n    return x**2  # square\n\n\n',
    '\u00a0nbsp\u2003em \u200b\u00ad soft',
    'aaaaaaaaaaaaaaaaaaaaaaaa' * 40,
    'na\u00efve caf\u00e9 re\u0301sume\u0301 \U0001f600\U0001f389\U0001f44d\U0001f3fd',
]
TEXTS = [*AWKWARD, *MORE]
TINY = dict(max_seq_len=4, num_layers=1, num_heads=1, d_model=2)


@pytest.fixture(scope='module')
def sessions(visit, tmp_path_factory):
    return Sessions(visit, tmp_path_factory.mktemp('exports'))


def check(sessions, tokenizer, name, texts=TEXTS):
    sessions.export(name, make_model(vocab_size=tokenizer.vocab_size, **TINY), tokenizer)
    for text, found in zip(texts, sessions.tokenize(name, texts), strict=True):
        ids = tokenizer.encode(text)
        assert found['ids'] == ids, text
        assert found['text'] == found['streamed'] == tokenizer.decode(ids), text


@pytest.mark.parametrize('name', CONFIGS)
def test_own_tokenizers(sessions, name):
    config = CONFIGS[name]
    tokenizer = make_tokenizer(config, lambda: corpus(config))
    limited = config.kind in (TokenizerKind.CHAR, TokenizerKind.SYMBOL)
    check(sessions, tokenizer, name, AWKWARD if limited else TEXTS)


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('normalizer', [None, 'NFC'])
def test_tokenizer_json_of_each_rule(sessions, rule, normalizer):
    spec = make_tokenizer(CONFIGS['bpe'], lambda: [ENGLISH] * 3).tokenizer_json()
    steps = RULES[rule]
    spec['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': steps}
    spec['normalizer'] = normalizer and {'type': normalizer}
    spec['model']['ignore_merges'] = rule == 'llama-bpe'
    own = {'id': len(spec['model']['vocab']), 'content': 'of wisdom', 'special': False}
    own |= dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    spec['added_tokens'].append(own)
    tokenizer = JsonTokenizer(spec, name='a test')
    check(sessions, tokenizer, f'{rule} {normalizer}')


def test_sentencepiece_with_a_space_before_texts_and_whole_pieces(sessions):
    check(sessions, llama_tokenizer(), 'llama')
    for algorithm in ('bpe', 'unigram'):
        model = library_model(
            model_type=algorithm,
            vocab_size=285,
            user_defined_symbols=['cat', ' sat', '\u2581mats', '34'],
            normalization_rule_name='identity',
            remove_extra_whitespaces=False,
        )
        check(sessions, SentencePieceTokenizer(model, name='a test'), f'whole {algorithm}')


def test_gpt2_and_llama(sessions, shared_data):
    golden = json.loads((shared_data / 'reference/gpt2_bpe_golden.json').read_text('utf-8'))
    gpt2 = BpeTokenizer.read(shared_data / 'tokenizers/gpt2/tokenizer.json')
    check(sessions, gpt2, 'gpt2', [*TEXTS, *(row['text'] for row in golden)])
    for row, found in zip(
        golden, sessions.tokenize('gpt2', [row['text'] for row in golden]), strict=True
    ):
        assert found['ids'] == row['ids_ordinary']
    llama = SentencePieceTokenizer.read(shared_data / 'tokenizers/llama2_32k/tokenizer.model')
    check(sessions, llama, 'llama 2')


def word_pieces():
    spec = {'type': 'WordPiece', 'vocab': {'[UNK]': 0, 'a': 1}, 'unk_token': '[UNK]'}
    spec |= {'continuing_subword_prefix': '##', 'max_input_chars_per_word': 100}
    return JsonTokenizer({'version': '1.0', 'added_tokens': [], 'model': spec}, name='a test')


def with_rule(pattern):
    spec = make_tokenizer(CONFIGS['bpe'], lambda: [ENGLISH]).tokenizer_json()
    split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated'}
    steps = [split | {'invert': False}, spec['pre_tokenizer'] | {'use_regex': False}]
    spec['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': steps}
    return JsonTokenizer(spec, name='a test')


REFUSED = {
    'word pieces': (word_pieces, 'no tokenizer.json but of byte-level BPE'),
    'another rule': (lambda: with_rule(r'\w+'), 'the rule by which this tokenizer splits texts'),
    'rewrites': (
        lambda: SentencePieceTokenizer(
            library_model(byte_fallback=False, vocab_size=60), name='a test'
        ),
        'no SentencePiece models that rewrite text',
    ),
}


@pytest.mark.parametrize(('make', 'message'), REFUSED.values(), ids=REFUSED)
def test_refused(make, message):
    with pytest.raises(UserError, match=f'{message}.*; --format hf takes this tokenizer'):
        describe_tokenizer(make())


def test_an_unknown_character_is_named(sessions):
    config = CONFIGS['char']
    tokenizer = make_tokenizer(config, lambda: ['abc'])
    sessions.export('abc', make_model(vocab_size=4, **TINY), tokenizer)
    with pytest.raises(Exception, match=r'“é” \(number 3\) is not among the 3'):
        sessions.tokenize('abc', ['abé'])
