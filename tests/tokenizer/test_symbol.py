"""The symbol tokenizer's own ids and messages."""

import pytest

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.symbol import SymbolTokenizer

SUMS = SymbolTokenizer(['+', '=', *map(str, range(12))])


def test_ids_are_those_of_the_symbols_numbers_in_order():
    assert SUMS.symbols == ['+', *'0123456789', '=', '10', '11']
    assert SUMS.encode('10 + 2 =') == [12, 0, 3, 11]
    assert (SUMS.vocab_size, SUMS.eot_id) == (15, 14)
    assert SUMS.decode([12, 0, 3, 11]) == '10 + 2 ='


@pytest.mark.parametrize('rest', [' 11', '11'])
def test_a_text_that_goes_on_begins_a_symbol(rest):
    ids = SUMS.encode('9 + 2 =') + SUMS.encode(rest, continues=True)
    assert SUMS.decode(ids) == '9 + 2 = 11'


@pytest.mark.parametrize('text, symbol', [('1 + x', "'x'"), ('1  + 1', "''"), ('1\n', r"'1\\n'")])
def test_an_unknown_symbol_is_named(text, symbol):
    with pytest.raises(UserError, match=f'^{symbol} is not among the 14 symbols') as raised:
        SUMS.encode(text)
    assert '\n' not in str(raised.value)


def test_a_symbol_has_no_space():
    with pytest.raises(UserError, match="'a b' has a space"):
        SymbolTokenizer(['a b'])


@pytest.mark.parametrize('stored', [[], {'symbols': 'ab'}, {'symbols': [1]}])
def test_a_damaged_file_is_named(stored, tmp_path):
    files.write_json(tmp_path / 'symbols.json', stored)
    with pytest.raises(UserError, match=r'symbols\.json must be'):
        SymbolTokenizer.read(tmp_path)
