"""A SentencePiece model as the tokenizer.json of the `tokenizers` library, with the same ids.

SentencePiece's BPE joins the pair whose piece has the best score, the library's the pair that
comes first in a list: the pairs that make each piece, by the piece's score, are that list. This is
how transformers converts such models; its Llama has the same file.
"""

import json
from typing import Any

_SPACE = '\u2581'


def to_tokenizer_json(
    model: bytes, *, lossless: bool, special_tokens: dict[str, int]
) -> dict[str, Any]:
    """The tokenizer.json of a serialized SentencePiece model.

    Args:
      model: the `.model` file.
      lossless: the model rewrites nothing but spaces; else its own normalisation comes first.
      special_tokens: by name, those that are no piece of the model included.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    types = proto.SentencePiece.Type
    unknown = next(i for i, piece in enumerate(proto.pieces) if piece.type == types.UNKNOWN)
    byte_fallback = any(piece.type == types.BYTE for piece in proto.pieces)
    prefix = proto.normalizer_spec.add_dummy_prefix
    if proto.trainer_spec.model_type == proto.trainer_spec.BPE:
        ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        made = models.BPE(
            vocab=ids,
            merges=_merges(proto, ids),
            unk_token=proto.pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    else:
        scores = [(piece.piece, piece.score) for piece in proto.pieces]
        made = models.Unigram(scores, unk_id=unknown, byte_fallback=byte_fallback)
    tokenizer = tokenizers.Tokenizer(made)
    if lossless:
        spaces = normalizers.Replace(' ', _SPACE)
        steps = [normalizers.Prepend(_SPACE), spaces] if prefix else [spaces]
        tokenizer.normalizer = normalizers.Sequence(steps)
        undo = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(
            [*undo, decoders.Strip(' ', 1, 0)] if prefix else undo
        )
    else:
        scheme = 'always' if prefix else 'never'
        charsmap = proto.normalizer_spec.precompiled_charsmap
        steps = [normalizers.Precompiled(charsmap)] if charsmap else []
        if proto.normalizer_spec.remove_extra_whitespaces:
            several = tokenizers.Regex(' {2,}')
            steps += [normalizers.Strip(), normalizers.Replace(several, ' ')]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, scheme)
        tokenizer.decoder = decoders.Metaspace(_SPACE, scheme)
    names = sorted(special_tokens, key=special_tokens.__getitem__)
    tokenizer.add_special_tokens([tokenizers.AddedToken(n, normalized=False) for n in names])
    return json.loads(tokenizer.to_str())


def _merges(proto: Any, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third one, best score first."""
    normal = {p.piece: p.score for p in proto.pieces if p.type == proto.SentencePiece.Type.NORMAL}
    pairs = []
    for piece, score in normal.items():
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in normal and pair[1] in normal]
        pairs += [(score, pair) for pair in sorted(known, key=lambda p: (ids[p[0]], ids[p[1]]))]
    return [pair for _, pair in sorted(pairs, key=lambda item: -item[0])]
