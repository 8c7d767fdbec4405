"""Tokenizers with one protocol: byte, char, symbol, sentencepiece and bpe."""

import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.base import CHAT_TEMPLATE, CONFIG_FILE, read_settings
from gpt_jax.tokenizer.bpe import BpeTokenizer
from gpt_jax.tokenizer.byte import ByteTokenizer
from gpt_jax.tokenizer.char import CharTokenizer
from gpt_jax.tokenizer.config import SentencePieceAlgorithm, TokenizerConfig, TokenizerKind
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.tokenizer.streaming import StreamDecoder
from gpt_jax.tokenizer.symbol import SymbolTokenizer

__all__ = [
    'TOKENIZERS',
    'SentencePieceAlgorithm',
    'StreamDecoder',
    'Tokenizer',
    'TokenizerConfig',
    'TokenizerKind',
    'keep',
    'load',
    'make_tokenizer',
]


class Tokenizer(Protocol):
    """The interface of tokenizers.

    If `lossless`, `decode(encode(text)) == text` for every str that is valid Unicode. A lone
    surrogate, which is not valid, raises UserError; so does an id outside the vocabulary.
    """

    kind: TokenizerKind
    vocab_size: int  # all ids, special tokens included
    eot_id: int | None  # ends a text; None: an imported vocabulary without such a token
    more_ends: tuple[int, ...]  # further ids that end generated text, but not documents
    bos_id: int | None  # begins documents and prompts; None: no such token
    special_tokens: dict[str, int]  # name -> id; special tokens have no text
    lossless: bool
    chat_template: str | None  # Jinja template that renders conversations; no id depends on it
    named_tokens: Mapping[str, str]  # name in templates (pad_token, …) -> special token

    def encode(
        self, text: str, *, allow_special: bool = False, continues: bool = False
    ) -> list[int]:
        """Returns the ids; names of special tokens are plain text unless `allow_special`.

        `continues`: puts no space before the text, for tokenizers that otherwise do.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids (uint32) of every text, equal to those of `encode`, in parallel."""

    def decode(self, ids: Any) -> str:
        """Returns the text; invalid UTF-8 becomes U+FFFD, and special tokens are left out."""

    def id_to_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that an id adds in the middle of a text."""

    def stream(self) -> StreamDecoder:
        """Returns an incremental decoder, which never emits part of a character."""

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything that determines the ids."""

    def tokenizer_json(self) -> dict[str, Any]:
        """Returns a tokenizer.json with which the `tokenizers` library returns the same ids."""

    def with_chat(
        self, *, template: str | None, named_tokens: Mapping[str, str] | None = None
    ) -> 'Tokenizer':
        """Returns a copy with another chat template and, if given, other named tokens."""

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the files that `load` reads."""


TOKENIZERS: dict[
    TokenizerKind,
    type[ByteTokenizer]
    | type[CharTokenizer]
    | type[SymbolTokenizer]
    | type[SentencePieceTokenizer]
    | type[BpeTokenizer],
] = {
    TokenizerKind.BYTE: ByteTokenizer,
    TokenizerKind.CHAR: CharTokenizer,
    TokenizerKind.SYMBOL: SymbolTokenizer,
    TokenizerKind.SENTENCEPIECE: SentencePieceTokenizer,
    TokenizerKind.BPE: BpeTokenizer,
}


def load(folder: str | pathlib.Path) -> Tokenizer:
    """Loads a tokenizer that `save` wrote and checks its fingerprint.

    Raises:
        UserError: the folder has no tokenizer, or its files are damaged.
    """
    folder = pathlib.Path(folder)
    path = folder / CONFIG_FILE
    stored = files.read_json(path)
    kind = stored.get('kind') if isinstance(stored, dict) else None
    if kind not in list(TokenizerKind):
        raise UserError(
            f'{path} names no tokenizer kind ({", ".join(TOKENIZERS)}); '
            'it was not written by gpt_jax, or is damaged'
        )
    tokenizer = TOKENIZERS[TokenizerKind(kind)].read(folder)
    if 'eot_id' in stored:
        ends = {'bos_id': stored.get('bos_id'), 'eot_id': stored['eot_id']}
        tokenizer = tokenizer.with_ends(**ends)
        if tokenizer.fingerprint() != stored.get('fingerprint'):  # saved without the added end id
            tokenizer = tokenizer.with_ends(bos_id=None, eot_id=None).with_ends(**ends)
    if tokenizer.fingerprint() != stored.get('fingerprint'):
        raise UserError(
            f'{folder} holds another tokenizer than {path} was written for; restore its files'
        )
    template = folder / CHAT_TEMPLATE
    template = files.read_text(template) if template.is_file() else None
    tokenizer = tokenizer.with_more_ends(stored.get('more_ends', ()))
    return tokenizer.with_chat(template=template, named_tokens=stored.get('named_tokens', {}))


def keep(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Saves a tokenizer atomically, since other processes read the folder once it exists.

    Keeps an existing folder.

    Raises:
        UserError: it cannot be written.
    """
    try:
        temporary = folder.with_name(f'.{folder.name}.tmp-{uuid.uuid4().hex}')
        try:
            tokenizer.save(temporary)
            if not folder.is_dir():
                temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from error


def make_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """Reads the tokenizer at `config.path`, or builds one from the texts of the corpus.

    `char` and `symbol` read every text for their alphabet; `bpe` and `sentencepiece` train on the
    first `config.train_megabytes`; `byte` reads nothing. The result depends only on the texts and
    the config.

    Raises:
        UserError: the path has no tokenizer of this kind, or none can be built from the texts.
    """
    if not config.path:
        return TOKENIZERS[config.kind].build(config, texts)
    path = pathlib.Path(config.path).expanduser()
    try:
        tokenizer = load(path) if _is_saved(path) else TOKENIZERS[config.kind].read(path)
    except UserError as error:
        raise UserError(f'config.tokenizer.path: {error}') from error
    if tokenizer.kind != config.kind:
        raise UserError(
            f'config.tokenizer.path: {path} holds a {tokenizer.kind} tokenizer; '
            f'set config.tokenizer.kind={tokenizer.kind}'
        )
    return tokenizer


def _is_saved(folder: pathlib.Path) -> bool:
    """Returns whether `save` wrote the folder; transformers' file of that name has no kind."""
    return 'kind' in read_settings(folder)
