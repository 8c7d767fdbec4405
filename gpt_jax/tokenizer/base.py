"""The base class of tokenizers: every id has fixed bytes, so a table decodes.

A subclass defines the encoding (`encode_batch`), the bytes that determine the ids (`content`), its
files (`write_files`) and two constructors. `build(config, texts)` makes a tokenizer from a corpus.
`read(path)` reads those files, or the usual files of other programs.
"""

import abc
import copy
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.config import TokenizerKind
from gpt_jax.tokenizer.streaming import StreamDecoder

CONFIG_FILE = 'tokenizer_config.json'
CHAT_TEMPLATE = 'chat_template.jinja'
END_OF_TEXT = '<|endoftext|>'
_END_OF_TEXT_NAMES = (END_OF_TEXT, '<|end_of_text|>', '</s>', '<eos>', '[EOS]')


class TableTokenizer(abc.ABC):
    """The base of every entry of `TOKENIZERS`; `gpt_jax.tokenizer.Tokenizer` is the interface."""

    kind: ClassVar[TokenizerKind]

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        *,
        special_tokens: dict[str, int],
        eot_id: int,
        lossless: bool = True,
        leading_spaces: int = 0,
    ):
        """Takes the bytes of every id; None for an unused id.

        Special tokens and unused ids have no text: their bytes are empty. Decoding drops up to
        `leading_spaces` spaces at the start of a text, because they come from the tokenizer.
        """
        self.special_tokens = special_tokens
        self.eot_id: int | None = eot_id
        self.bos_id: int | None = None
        self.more_ends: tuple[int, ...] = ()
        self.lossless = lossless
        self.chat_template: str | None = None
        self.named_tokens: Mapping[str, str] = {}
        self._token_bytes = [token or b'' for token in token_bytes]
        for token_id in special_tokens.values():
            self._token_bytes[token_id] = b''
        self._leading_spaces = leading_spaces

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids (uint32) of every text, equal to those of `encode`, on all cores."""

    @abc.abstractmethod
    def content(self) -> bytes:
        """Returns bytes that are equal if and only if every text has equal ids."""

    @abc.abstractmethod
    def write_files(self, folder: pathlib.Path) -> None:
        """Writes the files from which `read(folder)` restores this tokenizer."""

    def with_ends(self, *, bos_id: int | None, eot_id: int | None) -> Self:
        """Returns a copy with other begin and end tokens, as imported weights expect them.

        Args:
          bos_id: the begin-of-text token; None: none.
          eot_id: the end-of-text token; None: none, and the id that was added for it is removed.
        """
        changed = copy.copy(self)
        changed.__dict__.pop('_fingerprint', None)
        changed.bos_id, changed.eot_id = bos_id, eot_id
        if eot_id is None and self.special_tokens.get(END_OF_TEXT) == self.vocab_size - 1:
            changed._token_bytes = self._token_bytes[:-1]
            changed.special_tokens = {
                name: i for name, i in self.special_tokens.items() if name != END_OF_TEXT
            }
        return changed

    def with_more_ends(self, ids: Sequence[int]) -> Self:
        """Returns a copy with further tokens, besides `eot_id`, that end generated text."""
        changed = copy.copy(self)
        changed.more_ends = tuple(ids)
        return changed

    def with_chat(
        self, *, template: str | None, named_tokens: Mapping[str, str] | None = None
    ) -> Self:
        """Returns a copy with another chat template (see `tokenizer/chat_template.py`).

        Args:
          template: in Jinja; None: the tokenizer has no template.
          named_tokens: special tokens by their names in templates, such as pad_token; None:
            unchanged.
        """
        changed = copy.copy(self)
        changed.chat_template = template
        if named_tokens is not None:
            changed.named_tokens = named_tokens
        return changed

    @abc.abstractmethod
    def tokenizer_json(self) -> dict[str, Any]:
        """Returns a tokenizer.json with which the `tokenizers` library returns the same ids."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(self._token_bytes)

    def encode_inside(self, text: str) -> np.ndarray:
        """Returns the ids (uint32) of a text that continues another: no prefix is added."""
        return self.encode_batch([text])[0]

    def encode(
        self, text: str, *, allow_special: bool = False, continues: bool = False
    ) -> list[int]:
        """Returns the ids of `text`; with `allow_special`, names of special tokens become ids.

        Without it, such names are plain text, so that no document can forge the end of a text.
        With `continues`, the text continues another one: tokenizers that put a space before every
        text do not.
        """
        names = sorted(self.special_tokens, key=len, reverse=True) if allow_special else []
        # With the group, re.split returns text, name, text, …, text.
        parts = re.split(f'({"|".join(map(re.escape, names))})', text) if names else [text]
        inside = [self.encode_inside(parts[0])] if continues else []
        encoded = inside + self.encode_batch(parts[2 * len(inside) :: 2])
        ids = []
        for part_ids, name in zip(encoded, [*parts[1::2], None], strict=True):
            ids += part_ids.tolist()
            if name is not None:
                ids.append(self.special_tokens[name])
        return ids

    def decode(self, ids: Any) -> str:
        """Returns the text of `ids`; invalid UTF-8 becomes U+FFFD, special tokens are left out.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        stream = self.stream()
        return stream.push(ids) + stream.flush()

    def id_to_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that an id adds in the middle of a text; empty for special tokens.

        Raises:
            UserError: the id is outside the vocabulary.
        """
        return self._join([token_id])

    def stream(self) -> StreamDecoder:
        """Returns an incremental decoder of ids."""
        return StreamDecoder(self._join, leading_spaces=self._leading_spaces)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything that determines the ids; save and load keep it."""
        return self._fingerprint

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the files that `gpt_jax.tokenizer.load` reads; `tokenizer_config.json` last."""
        folder = pathlib.Path(folder)
        self.write_files(folder)
        if self.chat_template is not None:
            files.write_text(folder / CHAT_TEMPLATE, self.chat_template)
        else:
            (folder / CHAT_TEMPLATE).unlink(missing_ok=True)
        stored = {
            'kind': self.kind.value,
            'fingerprint': self.fingerprint(),
            'bos_id': self.bos_id,
            'eot_id': self.eot_id,
            'named_tokens': dict(self.named_tokens),
            'more_ends': list(self.more_ends),
        }
        files.write_json(folder / CONFIG_FILE, stored)

    @functools.cached_property
    def _fingerprint(self) -> str:
        ends = {'kind': self.kind.value, 'eot_id': self.eot_id, 'special': self.special_tokens}
        if self.bos_id is not None:
            ends['bos_id'] = self.bos_id
        digest = hashlib.sha256(canonical_json(ends))
        digest.update(self.content())
        return digest.hexdigest()

    def _join(self, ids: Any) -> bytes:
        ids = np.atleast_1d(np.asarray(ids))
        if not ids.size:
            return b''
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if wrong.size:
            raise UserError(
                f'token id {wrong[0]} is not in the vocabulary of the {self.kind} tokenizer '
                f'({self.vocab_size} ids); decode with the tokenizer that made these ids'
            )
        return b''.join([self._token_bytes[i] for i in ids.tolist()])


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """Reads a folder's tokenizer_config.json, ours or transformers'; {} if there is none."""
    path = folder / CONFIG_FILE
    stored = files.read_json(path) if path.is_file() else {}
    return stored if isinstance(stored, dict) else {}


def with_end_of_text(special_tokens: dict[str, int], size: int) -> tuple[dict[str, int], int]:
    """Returns the special tokens and the end-of-text id; if there is none, adds id `size`."""
    for name in _END_OF_TEXT_NAMES:
        if name in special_tokens:
            return special_tokens, special_tokens[name]
    return {**special_tokens, END_OF_TEXT: size}, size


def canonical_json(value: Any) -> bytes:
    """Returns JSON bytes that are equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(',', ':')).encode()


def find_file(path: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Returns `path` if it is a file, else the first of `names` that exists in the folder.

    Raises:
        UserError: there is no such file.
    """
    candidates = [path] if path.is_file() else [path / name for name in names]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f'{path} does not exist or has no {" or ".join(names)}; correct the path')
