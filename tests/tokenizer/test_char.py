"""The byte and the char tokenizer's own ids and messages."""

import pytest

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.byte import ByteTokenizer
from gpt_jax.tokenizer.char import CharTokenizer


def test_byte_ids_are_the_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode('aé') == [97, 0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (257, 256)
    assert tokenizer.decode([0xC3, 97]) == '\ufffda'


def test_char_ids_number_the_sorted_alphabet():
    tokenizer = CharTokenizer('hello 日')
    assert tokenizer.characters == ' ehlo日'
    assert tokenizer.encode('hole 日') == [2, 4, 3, 1, 0, 5]
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (7, 6)


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('héllo', r"'é' \(U\+00E9 LATIN SMALL LETTER E WITH ACUTE\) at position 1 "),
        ('hello😀', r'U\+1F600 GRINNING FACE\) at position 5 '),
        ('\n', r"'\\n' \(U\+000A unnamed\) at position 0 "),
    ],
    ids=['inside the table', 'beyond the table', 'control'],
)
def test_unknown_character_is_named(text, name):
    with pytest.raises(UserError, match=name) as raised:
        CharTokenizer('helo z日').encode(text)
    assert '\n' not in str(raised.value)


def test_shakespeare_has_65_characters(shared_data):
    text = (shared_data / 'corpora/tinyshakespeare/input.txt').read_text(encoding='utf-8')
    tokenizer = CharTokenizer(text)
    assert len(tokenizer.characters) == 65
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_fingerprint_tells_alphabets_apart():
    assert CharTokenizer('abc').fingerprint() == CharTokenizer('cba').fingerprint()
    assert CharTokenizer('abc').fingerprint() != CharTokenizer('abd').fingerprint()
    assert CharTokenizer('').fingerprint() != ByteTokenizer().fingerprint()


@pytest.mark.parametrize('stored', [[], {}, {'characters': 5}], ids=repr)
def test_damaged_alphabet(tmp_path, stored):
    files.write_json(tmp_path / 'characters.json', stored)
    with pytest.raises(UserError, match='characters.json must be'):
        CharTokenizer.read(tmp_path)
