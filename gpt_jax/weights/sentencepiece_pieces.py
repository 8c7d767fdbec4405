"""SentencePiece models from and to the lists of pieces that llama2.c and GGUF keep of them.

Both programs join the pair of neighbours whose piece has the best score, as SentencePiece's BPE
does, and write characters that have no piece as bytes.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from gpt_jax.errors import UserError
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer

USER_DEFINED = 4  # the kind of a piece that is never joined with another


class Piece(NamedTuple):
    """An entry of a SentencePiece model; spaces are U+2581."""

    text: str
    score: float
    kind: int  # SentencePiece.Type: 1 normal, 2 unknown, 3 control, 4 user's, 5 unused, 6 byte


def make_tokenizer(
    pieces: Iterable[Piece], *, add_prefix: bool, name: str
) -> SentencePieceTokenizer:
    """The tokenizer of a BPE model of these pieces that changes nothing but spaces.

    Args:
      pieces: in the order of their ids.
      add_prefix: a text begins with one space more.
      name: the file to blame in messages.

    Raises:
        UserError: they are no model of SentencePiece's.
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
    """The pieces of a tokenizer, and whether a text begins with one space more.

    Args:
      tokenizer: any SentencePiece model.
      format: what the pieces are for, for messages.

    Raises:
        UserError: scores and pieces alone do not give the same ids.
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
        if token_id == len(pieces):  # the end of a text, where the model had none
            pieces.append(Piece(name, 0.0, proto.SentencePiece.Type.CONTROL))
    return pieces, proto.normalizer_spec.add_dummy_prefix


def _parse(tokenizer: SentencePieceTokenizer) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(tokenizer.content())
