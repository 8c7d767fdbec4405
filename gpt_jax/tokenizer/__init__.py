"""Text to token ids and back: byte, char, sentencepiece and bpe behind one protocol."""

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
    """What the rest of gpt_jax may ask of a tokenizer.

    Where `lossless`, `decode(encode(text)) == text` for every str that is valid Unicode. A lone
    surrogate is not: it raises UserError, as does an id outside the vocabulary.
    """

    kind: TokenizerKind
    vocab_size: int  # all ids, special tokens included
    eot_id: int | None  # ends a text; None: an imported vocabulary that has no such token
    more_ends: tuple[int, ...]  # end a generated text too, but no document
    bos_id: int | None  # begins every text that a model continues; None: nothing does
    special_tokens: dict[str, int]  # by name; they have no text
    lossless: bool
    chat_template: str | None  # what makes text of conversations, in Jinja; no id depends on it
    named_tokens: Mapping[str, str]  # special tokens by what templates call them: pad_token, …

    def encode(
        self, text: str, *, allow_special: bool = False, continues: bool = False
    ) -> list[int]:
        """The ids; names of special tokens are plain text unless `allow_special`.

        `continues`: no space is put before the text, by tokenizers that do so with every text.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids (uint32) of every text, as `encode` gives them, in parallel."""

    def decode(self, ids: Any) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD, special tokens nothing."""

    def id_to_bytes(self, token_id: int) -> bytes:
        """The bytes that an id adds in the middle of a text."""

    def stream(self) -> StreamDecoder:
        """A decoder of ids that arrive a few at a time, never showing half a character."""

    def fingerprint(self) -> str:
        """SHA-256 of all that decides an id."""

    def tokenizer_json(self) -> dict[str, Any]:
        """The tokenizer.json that makes the `tokenizers` library give the same ids."""

    def with_chat(
        self, *, template: str | None, named_tokens: Mapping[str, str] | None = None
    ) -> 'Tokenizer':
        """The same ids, with another chat template and, if given, other named tokens."""

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes what `load` reads."""


TOKENIZERS: dict[
    TokenizerKind,
    type[ByteTokenizer] | type[CharTokenizer] | type[SentencePieceTokenizer] | type[BpeTokenizer],
] = {
    TokenizerKind.BYTE: ByteTokenizer,
    TokenizerKind.CHAR: CharTokenizer,
    TokenizerKind.SENTENCEPIECE: SentencePieceTokenizer,
    TokenizerKind.BPE: BpeTokenizer,
}


def load(folder: str | pathlib.Path) -> Tokenizer:
    """Restores a tokenizer that `save` wrote, fingerprint and all.

    Raises:
        UserError: the folder holds no tokenizer, or its files are damaged.
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
        if tokenizer.fingerprint() != stored.get('fingerprint'):  # it has no end that was added
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
    """Saves a tokenizer under a name that others read as soon as it is there.

    Where it is there already, it stays.

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

    `char` reads every text for its alphabet; `bpe` and `sentencepiece` train on the first
    `config.train_megabytes`; `byte` reads nothing. The result depends on the texts and the
    config only.

    Raises:
        UserError: the path holds no tokenizer of this kind, or the texts cannot give one.
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
    """Whether `save` wrote the folder; transformers has a file of that name too, with no kind."""
    return 'kind' in read_settings(folder)
