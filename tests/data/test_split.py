import collections

import pytest

from gpt_jax.data.documents import Piece
from gpt_jax.data.split import TRAIN, VALIDATION, parse_split, split_pieces, survey
from gpt_jax.errors import UserError


def split(pieces, rule):
    """The documents of each split."""
    parts = collections.defaultdict(list)
    for part in split_pieces(pieces, parse_split(rule), survey(pieces)):
        assert part.num_bytes == len(part.piece.text.encode())
        if part.piece.starts_document:
            parts[part.split].append('')
        parts[part.split][-1] += part.piece.text
    return parts[TRAIN], parts[VALIDATION]


def test_tail_cuts_one_document_by_characters_as_nanogpt_does():
    text = 'é' * 7 + 'abcdefgh'
    assert split([Piece(text)], 'tail:0.1') == ([text[: int(15 * 0.9)]], [text[int(15 * 0.9) :]])


@pytest.mark.parametrize('cut', range(1, 16))
def test_tail_cuts_one_document_wherever_its_pieces_end(cut):
    text = 'abcdefghijklmnop'
    pieces = [Piece(text[:cut], True), Piece(text[cut:], False)]
    assert split(pieces, 'tail:0.25') == ([text[:12]], [text[12:]])


def test_tail_takes_the_last_documents_by_bytes():
    texts = ['a' * 50, 'é' * 15, 'b' * 10, 'c' * 10]  # begin at bytes 0, 50, 80, 90
    pieces = [Piece(text) for text in texts]
    assert split(pieces, 'tail:0.2') == (texts[:2], texts[2:])
    assert split(pieces, 'tail:0.15') == (texts[:3], texts[3:])
    assert split(pieces, 'tail:0.01') == (texts[:3], texts[3:])


def test_hash_depends_on_the_document_alone():
    texts = [f'document {i}' for i in range(2000)]
    train, validation = split([Piece(text) for text in texts], 'hash:0.1')
    assert sorted(train + validation) == sorted(texts)
    assert 140 < len(validation) < 260
    backwards = split([Piece(text) for text in reversed(texts[::2])], 'hash:0.1')
    assert set(backwards[1]) == set(validation) & set(texts[::2])


def test_hash_keeps_the_pieces_of_a_document_together():
    pieces = []
    for i in range(200):
        pieces += [Piece(f'head {i}'), Piece(f' body {i}', False)]
    for part in split(pieces, 'hash:0.5'):
        assert len(part) > 50
        assert all(f'head {text.split()[-1]} body' in text for text in part)


def test_a_fraction_of_nothing_keeps_everything_for_training():
    for rule in ('hash:0', 'tail:0'):
        assert split([Piece('ab'), Piece('cd')], rule) == (['ab', 'cd'], [])


@pytest.mark.parametrize('rule', ['', 'tail', 'tail:', 'head:0.1', 'tail:1', 'hash:-0.1', 'hash:x'])
def test_a_wrong_rule_names_the_key(rule):
    with pytest.raises(UserError, match='config.data.split'):
        parse_split(rule)


def test_a_rule_is_written_as_it_is():
    assert str(parse_split('tail:0.10')) == 'tail:0.1'
    assert str(parse_split('hash:0.0123456789')) == 'hash:0.0123456789'
