"""A tokenizer with one id per character, for small alphabets (nanoGPT's Shakespeare)."""

import json
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.base import END_OF_TEXT, TableTokenizer, find_file
from gpt_jax.tokenizer.config import TokenizerConfig, TokenizerKind
from gpt_jax.tokenizer.unicode import check_unicode, empty_corpus

_FILE = 'characters.json'
_UNKNOWN = np.uint32(2**32 - 1)


class CharTokenizer(TableTokenizer):
    """A tokenizer that numbers an alphabet by code point; the last id ends a text."""

    kind = TokenizerKind.CHAR

    def __init__(self, characters: Iterable[str]):
        """Takes the alphabet, in any order.

        Raises:
            UserError: a character is a lone surrogate.
        """
        self.characters = ''.join(sorted(set(characters)))
        check_unicode(self.characters)
        eot_id = len(self.characters)
        super().__init__(
            [character.encode() for character in self.characters] + [b''],
            special_tokens={END_OF_TEXT: eot_id},
            eot_id=eot_id,
        )
        code_points = np.array([ord(character) for character in self.characters], np.uint32)
        # One extra slot after the largest code point is for all code points above it.
        self._id_of = np.full(int(code_points.max(initial=0)) + 2, _UNKNOWN)
        self._id_of[code_points] = np.arange(eot_id, dtype=np.uint32)

    @classmethod
    def build(cls, config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Self:
        """Takes the alphabet of the whole corpus.

        Raises:
            UserError: the corpus is empty or is not valid Unicode.
        """
        del config
        characters = set()
        for text in texts():
            characters.update(text)
        if not characters:
            raise empty_corpus()
        return cls(characters)

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """Reads `characters.json`: {"characters": "the alphabet"}."""
        path = find_file(path, [_FILE])
        stored = files.read_json(path)
        if not isinstance(stored, dict) or not isinstance(stored.get('characters'), str):
            raise UserError(
                f'{path} must be {{"characters": "the alphabet"}}; correct or delete it'
            )
        return cls(stored['characters'])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text by a table look-up, which threads do not speed up.

        Raises:
            UserError: a character is not in the alphabet.
        """
        return [self._encode(text) for text in texts]

    def content(self) -> bytes:
        """Returns the alphabet."""
        return self.characters.encode()

    def tokenizer_json(self) -> dict[str, Any]:
        """Returns a BPE of characters without merges; it drops characters that it lacks."""
        import tokenizers
        from tokenizers import decoders, models

        ids = {character: i for i, character in enumerate(self.characters)}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
        tokenizer.decoder = decoders.Fuse()
        names = [tokenizers.AddedToken(n, normalized=False) for n in self.special_tokens]
        tokenizer.add_special_tokens(names)
        return json.loads(tokenizer.to_str())

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes the alphabet."""
        files.write_json(folder / _FILE, {'characters': self.characters})

    def _encode(self, text: str) -> np.ndarray:
        check_unicode(text)
        code_points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
        ids = self._id_of[np.minimum(code_points, len(self._id_of) - 1)]
        unknown = np.flatnonzero(ids == _UNKNOWN)
        if unknown.size:
            position = int(unknown[0])
            character = text[position]
            raise UserError(
                f'character {character!r} (U+{ord(character):04X} '
                f'{unicodedata.name(character, "unnamed")}) at position {position} is not among '
                f'the {len(self.characters)} characters of the char tokenizer; remove it, or '
                'use config.tokenizer.kind=byte'
            )
        return ids
