"""A byte tokenizer: the 256 byte values of UTF-8, and one end-of-text id."""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.tokenizer.base import END_OF_TEXT, TableTokenizer, read_settings
from gpt_jax.tokenizer.bpe_vocabulary import BpeVocabulary, byte_characters
from gpt_jax.tokenizer.config import TokenizerConfig, TokenizerKind
from gpt_jax.tokenizer.unicode import check_unicode


class ByteTokenizer(TableTokenizer):
    """A tokenizer whose id i is byte i; id 256 ends a text."""

    kind = TokenizerKind.BYTE

    def __init__(self):
        super().__init__(
            [bytes([i]) for i in range(256)] + [b''], special_tokens={END_OF_TEXT: 256}, eot_id=256
        )

    @classmethod
    def build(cls, config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Self:
        """Returns the same tokenizer for every corpus."""
        del config, texts
        return cls()

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """Accepts only a folder that `save` wrote, since the tokenizer has no other files."""
        if read_settings(path).get('kind') != TokenizerKind.BYTE:
            raise UserError(
                f'{path}: the byte tokenizer has no files; leave the path empty, or say what it '
                f'holds: config.tokenizer.kind=bpe, sentencepiece or char'
            )
        return cls()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the UTF-8 bytes of every text; a memory copy, which threads do not speed up."""
        for text in texts:
            check_unicode(text)
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def content(self) -> bytes:
        """Returns no bytes: all byte tokenizers are equal."""
        return b''

    def tokenizer_json(self) -> dict[str, Any]:
        """Returns a byte-level BPE without merges."""
        ids = {character: byte for byte, character in enumerate(byte_characters())}
        vocabulary = BpeVocabulary(ids=ids, merges=[], special_tokens=self.special_tokens)
        return vocabulary.to_json()

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes nothing: the kind determines the tokenizer."""
