"""The corpora that are generated: their documents, what is learned of them, and their knobs."""

import pytest

from gpt_jax.data.config import DataConfig
from gpt_jax.data.corpora import make_corpus
from gpt_jax.data.shard_tokenizer import load_tokenizer
from gpt_jax.data.shards import Shards
from gpt_jax.data.split import TRAIN, VALIDATION
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind

SYMBOL = TokenizerConfig(kind=TokenizerKind.SYMBOL)


def documents_of(folder, split):
    """The texts of the documents, and of what is learned of each."""
    tokenizer = load_tokenizer(folder)
    shards = Shards.open(folder, split, tokenizer=tokenizer)
    found = []
    for start, stop in shards.documents:
        tokens, learned = shards.read(start, stop), shards.loss_mask(start, stop) > 0
        found.append((tokenizer.decode(tokens), tokenizer.decode(tokens[learned])))
    return found


def test_modular_has_every_sum_once(prepare_into):
    folder = prepare_into(SYMBOL, corpus='modular', modulus=11, split='hash:0.7')
    parts = [documents_of(folder, split) for split in (TRAIN, VALIDATION)]
    expected = {
        (f'{a} + {b} = {(a + b) % 11}', str((a + b) % 11)) for a in range(11) for b in range(11)
    }
    assert len(parts[0]) + len(parts[1]) == len(expected)
    assert {*parts[0], *parts[1]} == expected
    assert len(parts[1]) == pytest.approx(0.7 * len(expected), rel=0.15)
    assert load_tokenizer(folder).vocab_size == 11 + len('+=') + 1


def test_repeated_learns_the_second_time_of_a_block(prepare_into):
    knobs = {'num_documents': 20, 'block_length': 5}
    folder = prepare_into(SYMBOL, corpus='repeated', split='hash:0.3', **knobs)
    found = [*documents_of(folder, TRAIN), *documents_of(folder, VALIDATION)]
    assert len({*found}) == 20
    for text, learned in found:
        symbols = text.split(' ')
        assert symbols[:5] == symbols[5:] == learned.split(' ')


@pytest.mark.parametrize('corpus, knob', [('modular', 'modulus'), ('repeated', 'block_length')])
def test_shards_follow_the_knobs_of_the_corpus_alone(prepare_into, corpus, knob):
    small = {'corpus': corpus, 'split': 'hash:0.5', 'modulus': 5, 'num_documents': 9}
    first = prepare_into(SYMBOL, **small)
    assert prepare_into(SYMBOL, **small, windows='documents') == first
    assert prepare_into(SYMBOL, **(small | {knob: 7})) != first
    other = {'modulus': 'num_documents', 'block_length': 'modulus'}[knob]
    assert prepare_into(SYMBOL, **(small | {other: 11})) == first


def test_the_documents_never_change():
    """Or shards that exist would be taken for others."""
    pieces = make_corpus(DataConfig(corpus='repeated', block_length=6)).pieces()
    assert next(pieces).text == 'R X W f R I R X W f R I'


@pytest.mark.parametrize('modulus', [4, 9, 91])
def test_a_modulus_that_is_no_prime_is_refused(modulus):
    with pytest.raises(UserError, match=f'config.data.modulus={modulus} must be a prime') as error:
        make_corpus(DataConfig(corpus='modular', modulus=modulus))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('corpus', ['modular', 'repeated'])
def test_a_generated_corpus_has_no_source(corpus):
    with pytest.raises(UserError, match=r'takes no config\.data\.source'):
        make_corpus(DataConfig(corpus=corpus, source='text.txt'))
