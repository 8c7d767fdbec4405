"""Conversion of SentencePiece models from and to the piece lists of llama2.c and GGUF.

Both programs merge the neighbours whose joint piece has the best score, as SentencePiece's BPE
does. They encode characters without a piece as bytes.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from gpt_jax.errors import UserError
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer

USER_DEFINED = 4  # the kind of a piece that is never merged


class Piece(NamedTuple):
    """An entry of a SentencePiece model; spaces are U+2581."""

    text: str
    score: float
    kind: int  # SentencePiece.Type: 1 normal, 2 unknown, 3 control, 4 user's own, 5 unused, 6 byte


def make_tokenizer(
    pieces: Iterable[Piece], *, add_prefix: bool, name: str
) -> SentencePieceTokenizer:
    """Returns the tokenizer of a BPE model of these pieces that normalises nothing but spaces.

    Args:
      pieces: the pieces in the order of their ids.
      add_prefix: whether a space is prepended to each text.
      name: the file's name for error messages.

    Raises:
        UserError: the pieces form no valid SentencePiece model.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for piece in pieces:
        proto.pieces.add(piece=piece.text, score=piece.score, type=piece.kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.byte_fallback = any(p.type == p.Type.BYTE for p in proto.pieces)
    proto.normalizer_spec.name = 'identity'
    proto.normalizer_spec.add_dummy_prefix = add_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    return SentencePieceTokenizer(proto.SerializeToString(), name=name)


def list_pieces(tokenizer: SentencePieceTokenizer, *, format: str) -> tuple[list[Piece], bool]:
    """Returns the pieces of a tokenizer, and whether it prepends a space to each text.

    Args:
      tokenizer: any SentencePiece model.
      format: the export format, for error messages.

    Raises:
        UserError: pieces and scores alone do not reproduce the ids.
    """
    proto = _parse(tokenizer)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise UserError(
            f'{format} joins pieces by their scores (config.tokenizer.algorithm=bpe); this '
            f'SentencePiece model is of another kind, for which there is --format hf'
        )
    if not tokenizer.lossless:
        raise UserError(
            f'{format} has no SentencePiece models that rewrite text or have no bytes to fall '
            f'back on; --format hf takes this one'
        )
    pieces = [Piece(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    for name, token_id in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1]):
        if token_id == len(pieces):  # end of text, added to a model without one
            pieces.append(Piece(name, 0.0, proto.SentencePiece.Type.CONTROL))
    return pieces, proto.normalizer_spec.add_dummy_prefix


def _parse(tokenizer: SentencePieceTokenizer) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(tokenizer.content())
