"""What all tokenizers share: every id stands for fixed bytes, so a table decodes.

A kind adds how text becomes ids (`encode_batch`), what fixes those ids (`content`), the files
that hold it (`write_files`), and two constructors: `build(config, texts)` makes one from a
corpus, `read(path)` takes those files or the kind's usual files made elsewhere.
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
    """Base of every entry of `TOKENIZERS`; see `gpt_jax.tokenizer.Tokenizer` for the contract."""

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
        """Takes the bytes of every id; None is an id that the vocabulary skips.

        Special tokens and skipped ids have no text: their bytes are empty. `leading_spaces` is how
        many spaces at the very start of a decoded text are the tokenizer's own and not the text's.
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
        """The ids (uint32) of every text, as `encode` gives them, on all cores."""

    @abc.abstractmethod
    def content(self) -> bytes:
        """Bytes that are equal exactly where every text has equal ids."""

    @abc.abstractmethod
    def write_files(self, folder: pathlib.Path) -> None:
        """Writes what `read(folder)` of the same kind restores this tokenizer from."""

    def with_ends(self, *, bos_id: int | None, eot_id: int | None) -> Self:
        """The same ids of text, begun and ended by other tokens, as imported weights expect it.

        Args:
          bos_id: what every text begins with; None: nothing.
          eot_id: what ends a text; None: nothing does, and the id that was added for it is gone.
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
        """The same, with tokens beside `eot_id` at which generated text ends."""
        changed = copy.copy(self)
        changed.more_ends = tuple(ids)
        return changed

    def with_chat(
        self, *, template: str | None, named_tokens: Mapping[str, str] | None = None
    ) -> Self:
        """The same ids, with how a conversation becomes text (`tokenizer/chat_template.py`).

        Args:
          template: in Jinja; None: the tokenizer has none of its own.
          named_tokens: special tokens by what templates call them, such as pad_token; None: as
            they are.
        """
        changed = copy.copy(self)
        changed.chat_template = template
        if named_tokens is not None:
            changed.named_tokens = named_tokens
        return changed

    @abc.abstractmethod
    def tokenizer_json(self) -> dict[str, Any]:
        """The tokenizer.json that makes the `tokenizers` library give the same ids."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(self._token_bytes)

    def encode_inside(self, text: str) -> np.ndarray:
        """The ids (uint32) of a text that goes on inside another: nothing is put before it."""
        return self.encode_batch([text])[0]

    def encode(
        self, text: str, *, allow_special: bool = False, continues: bool = False
    ) -> list[int]:
        """The ids of `text`; with `allow_special`, names of special tokens become their ids.

        Without it such a name is plain text, so that no document can forge the end of a text.
        With `continues` the text goes on where another one ended, for tokenizers that put a space
        before every text.
        """
        names = sorted(self.special_tokens, key=len, reverse=True) if allow_special else []
        # The group makes split return text, name, text, …, text.
        parts = re.split(f'({"|".join(map(re.escape, names))})', text) if names else [text]
        encoded = self.encode_batch(parts[::2])
        if continues:
            encoded[0] = self.encode_inside(parts[0])
        ids = []
        for part_ids, name in zip(encoded, [*parts[1::2], None], strict=True):
            ids += part_ids.tolist()
            if name is not None:
                ids.append(self.special_tokens[name])
        return ids

    def decode(self, ids: Any) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, special tokens nothing.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        stream = self.stream()
        return stream.push(ids) + stream.flush()

    def id_to_bytes(self, token_id: int) -> bytes:
        """The bytes that an id adds in the middle of a text; empty for special tokens.

        Raises:
            UserError: the id is outside the vocabulary.
        """
        return self._join([token_id])

    def stream(self) -> StreamDecoder:
        """A decoder of ids that arrive a few at a time."""
        return StreamDecoder(self._join, leading_spaces=self._leading_spaces)

    def fingerprint(self) -> str:
        """SHA-256 of all that decides an id: equal after save and load, and on every machine."""
        return self._fingerprint

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes what `gpt_jax.tokenizer.load` reads; `tokenizer_config.json` comes last."""
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
    """A folder's tokenizer_config.json, ours or transformers'; {} where there is none."""
    path = folder / CONFIG_FILE
    stored = files.read_json(path) if path.is_file() else {}
    return stored if isinstance(stored, dict) else {}


def with_end_of_text(special_tokens: dict[str, int], size: int) -> tuple[dict[str, int], int]:
    """The special tokens and the id that ends a text; where none does, id `size` is added."""
    for name in _END_OF_TEXT_NAMES:
        if name in special_tokens:
            return special_tokens, special_tokens[name]
    return {**special_tokens, END_OF_TEXT: size}, size


def canonical_json(value: Any) -> bytes:
    """JSON bytes that are equal where the values are."""
    return json.dumps(value, sort_keys=True, separators=(',', ':')).encode()


def find_file(path: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """`path` itself where it is a file, else the first of `names` in the folder.

    Raises:
        UserError: there is no such file.
    """
    candidates = [path] if path.is_file() else [path / name for name in names]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f'{path} does not exist or has no {" or ".join(names)}; correct the path')
