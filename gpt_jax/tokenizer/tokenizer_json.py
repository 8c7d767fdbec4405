"""A tokenizer for every tokenizer.json that is not GPT-2-style, with the `tokenizers` library.

The library encodes. Decoding uses a table, as in the other tokenizers, so that streaming and
`decode` agree. The table is made with the library's decoder, one token at a time. Rules for several
tokens at once (WordPiece's clean-up of English) are not applied.
"""

import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.base import TableTokenizer, canonical_json, with_end_of_text
from gpt_jax.tokenizer.bpe_vocabulary import TOKENIZER_JSON, byte_characters
from gpt_jax.tokenizer.config import TokenizerKind
from gpt_jax.tokenizer.unicode import check_unicode

_BYTE_TOKEN = re.compile(r'<0x([0-9A-F]{2})>')


class JsonTokenizer(TableTokenizer):
    """A tokenizer.json of any family; its kind is bpe, since it has the same files."""

    kind = TokenizerKind.BPE

    def __init__(self, spec: dict[str, Any], *, name: str):
        """Takes the content of a tokenizer.json; `name` is the file in error messages.

        Raises:
            UserError: the library cannot read it.
        """
        try:
            self._tokenizer = _load(spec)
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f'{name} is not a tokenizer.json ({_one_line(error)}); restore it'
            ) from error
        self._name = name
        self._spec = spec
        added = self._tokenizer.get_added_tokens_decoder()
        special_tokens = {token.content: i for i, token in added.items() if token.special}
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        size = 1 + max(ids.values(), default=-1)
        self._named = tuple(special_tokens)  # the special tokens of the library
        special_tokens, eot_id = with_end_of_text(special_tokens, size)
        texts = {token_id: token.content.encode() for token_id, token in added.items()}
        if _is_byte_level(spec):
            byte_of = {character: byte for byte, character in enumerate(byte_characters())}
            for token, token_id in ids.items():
                if token_id in texts:
                    continue
                if byte_of.keys() >= set(token):
                    texts[token_id] = bytes(byte_of[character] for character in token)
                else:  # the library writes it unchanged
                    texts[token_id] = token.encode()
            leading_spaces = 0
        else:
            # Added tokens that are not special, such as Gemma's runs of spaces, are decoded too.
            ordinary = {token: i for token, i in ids.items() if token not in special_tokens}
            leading_spaces = self._decode_each(ordinary, texts)
        super().__init__(
            [texts.get(i) for i in range(max(size, eot_id + 1))],
            special_tokens=special_tokens,
            eot_id=eot_id,
            lossless=_is_lossless(spec),
            leading_spaces=leading_spaces,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the library's settings, which are lost in pickling."""
        self.__dict__.update(state)
        for name in ('_inside', '_with_special'):
            self.__dict__.pop(name, None)
        self._tokenizer.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text, computed on the library's threads.

        Raises:
            UserError: a text is not valid Unicode, or has a character that the vocabulary lacks
                and the vocabulary has no unknown token.
        """
        return self._encode(self._tokenizer, texts)

    def encode_inside(self, text: str) -> np.ndarray:
        return self._encode(self._inside, [text])[0]

    def encode(
        self, text: str, *, allow_special: bool = False, continues: bool = False
    ) -> list[int]:
        """Encodes like every tokenizer; the library handles the spaces around special tokens."""
        if not allow_special:
            return super().encode(text, continues=continues)
        ids = []
        if continues:
            names = '|'.join(map(re.escape, self.special_tokens))
            name = re.search(names, text) if names else None
            start = name.start() if name else len(text)
            ids = self.encode_inside(text[:start]).tolist()
            text = text[start:]
        added = [name for name in self.special_tokens if name not in self._named]  # at most one
        for part in re.split(f'({re.escape(added[0])})', text) if added else [text]:
            if part in added:
                ids.append(self.special_tokens[part])
            else:
                ids += self._encode(self._with_special, [part])[0].tolist()
        return ids

    @functools.cached_property
    def _inside(self) -> Any:
        """The library's tokenizer without a space before every text."""
        return _load(_without_prefix(self._spec))

    @functools.cached_property
    def _with_special(self) -> Any:
        """The library's tokenizer that encodes names of special tokens as their ids."""
        tokenizer = _load(self._spec)
        tokenizer.encode_special_tokens = False
        return tokenizer

    def _encode(self, tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_unicode(text)
        try:
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f'{self._name} cannot encode the text: {_one_line(error)}') from error
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def content(self) -> bytes:
        """Returns the tokenizer.json as canonical JSON."""
        return canonical_json(self._spec)

    def tokenizer_json(self) -> dict[str, Any]:
        """Returns the tokenizer.json that was read."""
        return self._spec

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes the tokenizer.json."""
        files.write_json(folder / TOKENIZER_JSON, self._spec)

    def _decode_each(self, ordinary: dict[str, int], texts: dict[int, bytes]) -> int:
        """Adds the text of each token after another one; returns the leading spaces to remove."""
        alone = dict(zip(ordinary, self._decode([[i] for i in ordinary.values()]), strict=True))
        # A token to put before each token: one whose text is exactly its name.
        anchor = next((i for token, i in ordinary.items() if token == alone[token]), None)
        before = [] if anchor is None else [anchor]
        prefix = self._decode([before])[0]
        leading_spaces = 0
        after = self._decode([[*before, i] for i in ordinary.values()])
        for (token, token_id), text in zip(ordinary.items(), after, strict=True):
            text = text.removeprefix(prefix)
            byte = _BYTE_TOKEN.fullmatch(token)
            if byte and text != token:
                texts[token_id] = bytes.fromhex(byte[1])
            else:
                texts[token_id] = text.encode()
                if text.startswith(' ') and text[1:] == alone[token]:
                    leading_spaces = 1
        return leading_spaces

    def _decode(self, batch: list[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(batch, skip_special_tokens=False)


def _load(spec: dict[str, Any]) -> Any:
    """Loads the library's tokenizer without truncation; names of special tokens are plain text."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # in the library, this means as plain text
    return tokenizer


def _without_prefix(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer.json changed so that no space is put before a text."""
    off = {'add_prefix_space': False, 'prepend_scheme': 'never'}

    def change(part: Any) -> Any:
        if isinstance(part, list):
            return [change(each) for each in part]
        if not isinstance(part, dict):
            return part
        if part.get('type') == 'Prepend':
            return {'type': 'Sequence', 'normalizers': []}
        return {key: off.get(key, change(value)) for key, value in part.items()}

    return spec | {key: change(spec.get(key)) for key in ('normalizer', 'pre_tokenizer')}


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())


def _is_byte_level(spec: dict[str, Any]) -> bool:
    return (spec.get('decoder') or {}).get('type') == 'ByteLevel'


def _is_lossless(spec: dict[str, Any]) -> bool:
    """Returns whether decoding restores every text: byte-level BPE that rewrites no text."""
    split = spec.get('pre_tokenizer') or {}
    steps = split['pretokenizers'] if split.get('type') == 'Sequence' else [split]
    byte_level = [step for step in steps if step.get('type') == 'ByteLevel']
    model = spec['model']
    return (
        _is_byte_level(spec)
        and model.get('type') == 'BPE'
        and model['vocab'].keys() >= set(byte_characters())
        and spec.get('normalizer') is None
        and bool(byte_level)
        and not any(step.get('add_prefix_space', True) for step in byte_level)
        and all(step.get('type') in ('ByteLevel', 'Split', 'Digits') for step in steps)
        and not any(step.get('behavior') == 'Removed' for step in steps)
        and not any(
            token['lstrip'] or token['rstrip']
            for token in spec.get('added_tokens') or []
            if not token['special']
        )
    )
