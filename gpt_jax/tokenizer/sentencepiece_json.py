"""Conversion of a SentencePiece model to a tokenizer.json that gives the same ids.

SentencePiece's BPE joins the pair whose piece has the best score. The `tokenizers` library joins
the pair that is first in a list. So the list has all pairs that make a piece, sorted by the score
of the piece. transformers converts such models the same way; its Llama has the same file.
"""

import json
import re
from typing import Any

from gpt_jax.errors import UserError

_SPACE = '\u2581'


def to_tokenizer_json(model: bytes, *, special_tokens: dict[str, int]) -> dict[str, Any]:
    """Returns the tokenizer.json of a serialized SentencePiece model.

    Args:
      model: the content of the `.model` file.
      special_tokens: name -> id, with those that are no piece of the model.

    Raises:
        UserError: the model has a feature that a tokenizer.json cannot express.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, normalizers, pre_tokenizers

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    types, normalizer = proto.SentencePiece.Type, proto.normalizer_spec
    for unknown_there, said in (
        (not normalizer.escape_whitespaces, 'leaves spaces as they are'),
        (proto.trainer_spec.treat_whitespace_as_suffix, 'puts spaces behind words'),
        (proto.denormalizer_spec.precompiled_charsmap, 'rewrites what it decodes'),
    ):
        if unknown_there:
            raise UserError(
                f'config.tokenizer: this SentencePiece model {said}, which no tokenizer.json says'
            )
    whole = [piece.piece for piece in proto.pieces if piece.type == types.USER_DEFINED]
    byte_fallback = any(piece.type == types.BYTE for piece in proto.pieces)
    tokenizer = tokenizers.Tokenizer(
        _make_model(proto, byte_fallback=byte_fallback, whole=bool(whole))
    )
    trim, several = tokenizers.Regex(r'\A +| +\z'), tokenizers.Regex(' {2,}')
    steps = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(trim, ''), normalizers.Replace(several, ' ')]
    if normalizer.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(' ', _SPACE)])
    if whole:
        longest_first = '|'.join(map(re.escape, sorted(whole, key=len, reverse=True)))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(longest_first), 'isolated')
    undo = [decoders.Replace(_SPACE, ' ')]
    if byte_fallback:
        undo.append(decoders.ByteFallback())
    undo.append(decoders.Fuse())
    if normalizer.add_dummy_prefix:
        undo.append(decoders.Strip(' ', 1, 0))
    tokenizer.decoder = decoders.Sequence(undo)
    names = sorted(special_tokens, key=special_tokens.__getitem__)
    tokenizer.add_special_tokens([tokenizers.AddedToken(n, normalized=False) for n in names])
    return json.loads(tokenizer.to_str())


def _make_model(proto: Any, *, byte_fallback: bool, whole: bool) -> Any:
    """Returns the library's BPE or unigram model; `whole`: split-off text is a single piece."""
    from tokenizers import models

    types = proto.SentencePiece.Type
    unknown = next(i for i, piece in enumerate(proto.pieces) if piece.type == types.UNKNOWN)
    if proto.trainer_spec.model_type == proto.trainer_spec.BPE:
        ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        return models.BPE(
            vocab=ids,
            merges=_merges(proto, ids),
            unk_token=proto.pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=byte_fallback,
            ignore_merges=whole,
        )
    # Names of bytes and special pieces are not text: a low score prefers their known characters.
    in_text = (types.NORMAL, types.USER_DEFINED)
    least = min((piece.score for piece in proto.pieces if piece.type == types.NORMAL), default=0)
    scores = [
        (piece.piece, piece.score if piece.type in in_text else 100 * (least - 10))
        for piece in proto.pieces
    ]
    return models.Unigram(scores, unk_id=unknown, byte_fallback=byte_fallback)


def _merges(proto: Any, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Returns every pair of pieces that makes a third piece, best score first."""
    normal = {p.piece: p.score for p in proto.pieces if p.type == proto.SentencePiece.Type.NORMAL}
    pairs = []
    for piece, score in normal.items():
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in normal and pair[1] in normal]
        pairs += [(score, pair) for pair in sorted(known, key=lambda p: (ids[p[0]], ids[p[1]]))]
    return [pair for _, pair in sorted(pairs, key=lambda item: -item[0])]
