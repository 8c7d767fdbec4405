"""SentencePiece models: any `.model` file, or one trained on the corpus.

SentencePiece writes a space as U+2581 and decodes that character as a space. If a model changes
nothing else (no normalisation, byte fallback), this module encodes U+2581 itself as its three
bytes. Such models are lossless, among them Llama 2's and those trained here. Models with
normalisation or unknown characters (T5's) are not: they encode exactly as the library does.
"""

import io
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.base import (
    END_OF_TEXT,
    TableTokenizer,
    find_file,
    with_end_of_text,
)
from gpt_jax.tokenizer.config import TokenizerConfig, TokenizerKind, check_vocab_size
from gpt_jax.tokenizer.sentencepiece_json import to_tokenizer_json
from gpt_jax.tokenizer.unicode import check_unicode, empty_corpus, take_megabytes

_SMALLEST_VOCABULARY = 259  # the bytes, unknown, end of text and one character
_FILES = ('tokenizer.model', 'sentencepiece.model', 'spiece.model')
_SPACE = '\u2581'
_RESERVED = re.compile('[\n\u2581\u2585]')  # the library drops lines that contain the last one
_TRAINING_LINE = 1000  # characters: the library skips lines of more than 4192 bytes


class SentencePieceTokenizer(TableTokenizer):
    """A SentencePiece model; its control pieces are the special tokens (bos included)."""

    kind = TokenizerKind.SENTENCEPIECE

    def __init__(self, model: bytes, *, name: str):
        """Takes the bytes of a `.model` file; `name` is its name in error messages.

        Raises:
            UserError: the bytes are not a SentencePiece model.
        """
        import sentencepiece
        from google.protobuf import message
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(model)
            if not proto.pieces:
                raise message.DecodeError('the model has no pieces')
            normalizer = proto.normalizer_spec
            lossless = _is_lossless(proto)
            leading_spaces = int(normalizer.add_dummy_prefix)
            if normalizer.remove_extra_whitespaces:
                leading_spaces = sys.maxsize
            self._prefix = ' ' if lossless and normalizer.add_dummy_prefix else ''
            if self._prefix:  # added in encode_batch, so that a text can be encoded in parts
                normalizer.add_dummy_prefix = False
                proto.DiscardUnknownFields()  # the self-test expects the prefix
            self._processor = sentencepiece.SentencePieceProcessor(
                model_proto=proto.SerializeToString()
            )
        except (message.DecodeError, RuntimeError) as error:
            raise UserError(f'{name} is not a SentencePiece model; restore the file') from error
        self._model = model
        control = proto.SentencePiece.Type.CONTROL
        special_tokens = {p.piece: i for i, p in enumerate(proto.pieces) if p.type == control}
        eos_id = self._processor.eos_id()
        if END_OF_TEXT in special_tokens or eos_id < 0:
            special_tokens, eot_id = with_end_of_text(special_tokens, len(proto.pieces))
        else:
            eot_id = eos_id
        token_bytes = _piece_bytes(proto)
        super().__init__(
            token_bytes if eot_id < len(token_bytes) else [*token_bytes, b''],
            special_tokens=special_tokens,
            eot_id=eot_id,
            lossless=lossless,
            leading_spaces=leading_spaces,
        )
        self._space_ids = (
            [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in _SPACE.encode()]
            if lossless
            else []
        )

    @classmethod
    def build(cls, config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Self:
        """Trains on the start of the corpus, with byte fallback and without normalisation.

        Line ends are never part of a piece: each is one byte token, as in Llama 2.

        Raises:
            UserError: the corpus is empty, or vocab_size does not fit it; the message says which
                size does.
        """
        import sentencepiece

        check_vocab_size(config, smallest=_SMALLEST_VOCABULARY)
        lines = list(_training_lines(take_megabytes(texts(), config.train_megabytes)))
        if not lines:
            raise empty_corpus()
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type=config.algorithm.value,
                vocab_size=config.vocab_size,
                character_coverage=0.9999,
                normalization_rule_name='identity',
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                split_digits=True,
                byte_fallback=True,
                unk_id=0,
                eos_id=1,
                eos_piece=END_OF_TEXT,
                bos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _training_error(config.vocab_size, str(error)) from error
        return cls(model.getvalue(), name='the trained model')

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """Reads a `.model` file, or the one in a folder.

        Raises:
            UserError: the file is missing or is not a SentencePiece model.
        """
        path = find_file(path, _FILES)
        try:
            model = path.read_bytes()
        except OSError as error:
            raise UserError(f'cannot read {path}: {error.strerror or error}') from error
        return cls(model, name=str(path))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text, computed on the library's threads.

        Raises:
            UserError: a text is not valid Unicode.
        """
        return self._encode([self._prefix + text if text else '' for text in texts])

    def encode_inside(self, text: str) -> np.ndarray:
        return self._encode([text])[0]

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_unicode(text)
        parts = [[text] for text in texts]
        if self.lossless:
            parts = [text.split(_SPACE) for [text] in parts]
        encoded = iter(
            self._processor.encode(
                [part for some in parts for part in some],
                return_type='numpy',
                num_threads=os.cpu_count() or 1,
            )
        )
        return [self._join_parts([next(encoded) for _ in some]) for some in parts]

    def content(self) -> bytes:
        """Returns the serialized model."""
        return self._model

    def tokenizer_json(self) -> dict[str, Any]:
        """Converts the model; there, U+2581 in a text is a space, as in the library."""
        return to_tokenizer_json(self._model, special_tokens=self.special_tokens)

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes the model unchanged, as read or trained."""
        with files.atomic_file(folder / _FILES[0]) as file:
            file.write(self._model)

    def _join_parts(self, parts: list[np.ndarray]) -> np.ndarray:
        between = np.array(self._space_ids, np.uint32)
        joined = [parts[0].astype(np.uint32)]
        for part in parts[1:]:
            joined += [between, part.astype(np.uint32)]
        return np.concatenate(joined)


def _is_lossless(proto: Any) -> bool:
    normalizer = proto.normalizer_spec
    num_bytes = sum(piece.type == piece.Type.BYTE for piece in proto.pieces)
    return (
        num_bytes == 256
        and not normalizer.precompiled_charsmap
        and not normalizer.remove_extra_whitespaces
        and normalizer.escape_whitespaces
        and not proto.trainer_spec.treat_whitespace_as_suffix
        and not proto.denormalizer_spec.precompiled_charsmap
    )


def _piece_bytes(proto: Any) -> list[bytes]:
    types = proto.SentencePiece.Type
    token_bytes = []
    for piece in proto.pieces:
        if piece.type == types.BYTE:
            token_bytes.append(bytes.fromhex(piece.piece[3:5]))  # <0xE2>
        elif piece.type == types.UNKNOWN:
            token_bytes.append(proto.trainer_spec.unk_surface.encode())
        else:
            token_bytes.append(piece.piece.replace(_SPACE, ' ').encode())
    return token_bytes


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in _RESERVED.split(text):
            for start in range(0, len(line), _TRAINING_LINE):
                yield line[start : start + _TRAINING_LINE]


def _training_error(vocab_size: int, message: str) -> UserError:
    key = f'config.tokenizer.vocab_size={vocab_size}'
    too_small = re.search(r'smaller than required_chars\. \d+ vs (\d+)', message)
    if too_small:
        return UserError(
            f'{key} is too small for this corpus: its characters and the 256 bytes alone need '
            f'{too_small[1]}; raise it, or name an existing tokenizer (config.tokenizer.path)'
        )
    too_large = re.search(r'value <= (\d+)', message)
    if too_large:
        return UserError(
            f'{key} is more than this corpus can fill: the largest that fits is {too_large[1]}; '
            'lower it, use more text or raise config.tokenizer.train_megabytes'
        )
    return UserError(f'cannot train a sentencepiece tokenizer: {" ".join(message.split())}')
