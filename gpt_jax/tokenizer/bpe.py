"""GPT-2's byte-level BPE: tiktoken encodes, and the `tokenizers` library trains.

A trained vocabulary has the order of GPT-2's: 256 bytes, the merges in order, and the end-of-text
token last.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from gpt_jax import files
from gpt_jax.tokenizer.base import TableTokenizer, canonical_json, with_end_of_text
from gpt_jax.tokenizer.bpe_vocabulary import (
    TOKENIZER_JSON,
    BpeVocabulary,
    check_spec,
    parse_gpt2,
    read_tokenizer_json,
)
from gpt_jax.tokenizer.config import TokenizerConfig, TokenizerKind, check_vocab_size
from gpt_jax.tokenizer.tokenizer_json import JsonTokenizer
from gpt_jax.tokenizer.unicode import check_unicode, take_megabytes

# tiktoken's version of GPT-2's splitting rule (tiktoken_ext/openai_public.py, r50k_pat_str):
# the same pieces, several times faster.
_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# The rule never joins the last blank of a run to the text before it, so text cut there gives the
# same ids. Without cuts, a million blanks overflow the stack of the regex engine.
_CUT = re.compile(r'[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000](?=\S)')
_CHUNK_CHARACTERS = 1 << 17
_SMALLEST_VOCABULARY = 257  # the bytes and the end-of-text token
# The trainer's time is quadratic in the length of a word.
_LONG_WORD = re.compile(r'\S{1000}|\s{1000}')


class BpeTokenizer(TableTokenizer):
    """A byte-level BPE with GPT-2's splitting rule and GPT-2's or a trained vocabulary."""

    kind = TokenizerKind.BPE

    def __init__(self, vocabulary: BpeVocabulary):
        import tiktoken

        ranks = vocabulary.ranks()
        size = 1 + max([*ranks.values(), *vocabulary.special_tokens.values()])
        special_tokens, eot_id = with_end_of_text(vocabulary.special_tokens, size)
        token_bytes = [None] * max(size, eot_id + 1)
        for token, token_id in ranks.items():
            token_bytes[token_id] = token
        super().__init__(token_bytes, special_tokens=special_tokens, eot_id=eot_id)
        self._vocabulary = vocabulary
        # If given no special tokens, tiktoken searches for one at every character.
        self._encoding = tiktoken.Encoding(
            'gpt_jax', pat_str=_SPLIT, mergeable_ranks=ranks, special_tokens=special_tokens
        )

    @classmethod
    def build(cls, config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Self:
        """Trains on the start of the corpus; a tiny corpus gives fewer ids than `vocab_size`.

        Raises:
            UserError: the corpus is empty, or vocab_size is too small for the 256 bytes and the
                end-of-text token.
        """
        import tokenizers

        check_vocab_size(config, smallest=_SMALLEST_VOCABULARY)
        trained = tokenizers.Tokenizer(tokenizers.models.BPE())
        trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=config.vocab_size - 1,  # the end-of-text token is added later
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        sample = take_megabytes(texts(), config.train_megabytes)
        trained.train_from_iterator((part for text in sample for part in _parts(text)), trainer)
        vocabulary = parse_gpt2(json.loads(trained.to_str()))
        assert vocabulary is not None, 'a trained byte-level BPE is GPT-2-style'
        return cls(vocabulary)

    @classmethod
    def read(cls, path: pathlib.Path) -> TableTokenizer:
        """Reads GPT-2-style files, or any other tokenizer.json with the `tokenizers` library.

        Raises:
            UserError: a file is missing or cannot be read.
        """
        path, spec = read_tokenizer_json(path)
        check_spec(spec, str(path))
        vocabulary = parse_gpt2(spec)
        return JsonTokenizer(spec, name=str(path)) if vocabulary is None else cls(vocabulary)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text; a long text is also spread over several cores.

        Raises:
            UserError: a text is not valid Unicode.
        """
        for text in texts:
            check_unicode(text)
        chunks = [_cut(text) for text in texts]
        ids = iter(self._encode_chunks([chunk for parts in chunks for chunk in parts]))
        return [_join([next(ids) for _ in parts]) for parts in chunks]

    def content(self) -> bytes:
        """Returns the splitting rule and the ids, which determine the order of the merges."""
        return canonical_json([_SPLIT, self._vocabulary.ids])

    def tokenizer_json(self) -> dict[str, Any]:
        """Returns the vocabulary as a tokenizer.json."""
        vocabulary = self._vocabulary
        return dataclasses.replace(vocabulary, special_tokens=self.special_tokens).to_json()

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes a tokenizer.json."""
        files.write_json(folder / TOKENIZER_JSON, self.tokenizer_json())

    def _encode_chunks(self, chunks: list[str]) -> list[np.ndarray]:
        def encode(some: list[str]) -> list[np.ndarray]:
            return [self._encoding.encode_to_numpy(chunk, disallowed_special=()) for chunk in some]

        num_threads = min(os.cpu_count() or 1, len(chunks))
        if num_threads <= 1:
            return encode(chunks)
        # Four shares per thread: little scheduling for short texts, and long ones still balance.
        share = -(-len(chunks) // (4 * num_threads))
        shares = [chunks[i : i + share] for i in range(0, len(chunks), share)]
        with ThreadPoolExecutor(num_threads) as pool:
            return [ids for some in pool.map(encode, shares) for ids in some]


def _parts(text: str) -> Iterator[str]:
    """Yields the text to train on, with very long words cut into shorter ones."""
    start = 0
    for word in _LONG_WORD.finditer(text):
        yield text[start : word.end()]
        start = word.end()
    yield text[start:]


def _cut(text: str) -> list[str]:
    """Cuts a long text about every `_CHUNK_CHARACTERS`, only where the ids stay the same."""
    chunks = []
    start = 0
    while len(text) - start > _CHUNK_CHARACTERS:
        cut = _CUT.search(text, start + _CHUNK_CHARACTERS)
        if cut is None:
            break
        chunks.append(text[start : cut.start()])
        start = cut.start()
    chunks.append(text[start:])
    return chunks


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
