"""A tokenizer with one id per symbol: the texts between single spaces."""

import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.base import END_OF_TEXT, TableTokenizer, find_file
from gpt_jax.tokenizer.config import TokenizerConfig, TokenizerKind
from gpt_jax.tokenizer.unicode import check_unicode, empty_corpus

_FILE = 'symbols.json'


class SymbolTokenizer(TableTokenizer):
    """A tokenizer that numbers symbols by length, then by code points; the last id ends a text.

    So numbers are in order. Two spaces in a row have an empty symbol between them. A text that
    continues another begins a new symbol, with a space or without.
    """

    kind = TokenizerKind.SYMBOL

    def __init__(self, symbols: Iterable[str]):
        """Takes the symbols, in any order.

        Raises:
            UserError: one has a space or a lone surrogate.
        """
        self.symbols = sorted(set(symbols), key=lambda symbol: (len(symbol), symbol))
        for symbol in self.symbols:
            check_unicode(symbol)
            if ' ' in symbol:
                raise UserError(f'the symbol {symbol!r} has a space, which separates symbols')
        eot_id = len(self.symbols)
        super().__init__(
            [f' {symbol}'.encode() for symbol in self.symbols] + [b''],
            special_tokens={END_OF_TEXT: eot_id},
            eot_id=eot_id,
            leading_spaces=1,
        )
        self._id_of = {symbol: i for i, symbol in enumerate(self.symbols)}

    @classmethod
    def build(cls, config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Self:
        """Takes the symbols of the whole corpus.

        Raises:
            UserError: the corpus is empty or is not valid Unicode.
        """
        del config
        symbols = set()
        for text in texts():
            symbols.update(_split(text))
        if not symbols:
            raise empty_corpus()
        return cls(symbols)

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """Reads `symbols.json`: {"symbols": ["a", "b"]}."""
        path = find_file(path, [_FILE])
        stored = files.read_json(path)
        symbols = stored.get('symbols') if isinstance(stored, dict) else None
        if not isinstance(symbols, list) or not all(isinstance(each, str) for each in symbols):
            raise UserError(f'{path} must be {{"symbols": ["a", "b"]}}; correct or delete it')
        return cls(symbols)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text by a table look-up, which threads do not speed up.

        Raises:
            UserError: a text has another symbol.
        """
        for text in texts:
            check_unicode(text)
        return [self._encode(_split(text)) for text in texts]

    def encode_inside(self, text: str) -> np.ndarray:
        """Returns the ids of a text that continues another."""
        check_unicode(text)
        return self._encode(_split(text.removeprefix(' ')))

    def content(self) -> bytes:
        """Returns the symbols."""
        return json.dumps(self.symbols).encode()

    def tokenizer_json(self) -> dict[str, Any]:
        """Returns a table of symbols, each with the space before it; it refuses other symbols."""
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers

        ids = {f' {symbol}': i for i, symbol in enumerate(self.symbols)}
        tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab=ids, unk_token=END_OF_TEXT))
        tokenizer.normalizer = normalizers.Prepend(' ')
        tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(' [^ ]*'), 'isolated')
        tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(' ', 1, 0)])
        names = [tokenizers.AddedToken(n, normalized=False) for n in self.special_tokens]
        tokenizer.add_special_tokens(names)
        return json.loads(tokenizer.to_str())

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes the symbols."""
        files.write_json(folder / _FILE, {'symbols': self.symbols})

    def _encode(self, symbols: list[str]) -> np.ndarray:
        try:
            return np.array([self._id_of[symbol] for symbol in symbols], np.uint32)
        except KeyError as error:
            symbol = error.args[0]
            raise UserError(
                f'{symbol!r:.60} is not among the {len(self.symbols)} symbols of the symbol '
                f'tokenizer, which single spaces separate; correct the text'
            ) from None


def _split(text: str) -> list[str]:
    """Returns the symbols of a text; an empty text has none."""
    return text.split(' ') if text else []
