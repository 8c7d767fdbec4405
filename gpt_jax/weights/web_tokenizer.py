"""Description of a tokenizer as the JavaScript of `gpt_jax.web` reads it."""

import base64
from collections.abc import Mapping
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer, TokenizerKind
from gpt_jax.tokenizer.bpe_vocabulary import byte_characters
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.tokenizer.tokenizer_json import JsonTokenizer

# Rules that split texts before byte-level BPE, as tokenizer.json files have them, and the same in
# JavaScript. Its \s is not Unicode's White_Space, and 'ſ' is a lower case of S to a rule that
# ignores case.
_GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ANY_CASE_SCRIPT = r"'(?:[sSſ]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_WORDS = (
    _ANY_CASE + r'|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}'
    r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_PATTERNS = (_GPT2, _WORDS.format(digits='{1,3}'), _WORDS.format(digits=''))


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the kind, the bytes of each id, and what the kind needs for encoding.

    Raises:
        UserError: JavaScript has no such tokenizer, so that ids would differ.
    """
    texts = [tokenizer.id_to_bytes(i) for i in range(tokenizer.vocab_size)]
    return {
        'kind': tokenizer.kind,
        'bytes': base64.b64encode(b''.join(texts)).decode(),
        'lengths': [len(text) for text in texts],
        'leadingSpaces': 0,
        'begin': tokenizer.bos_id,
        'end': tokenizer.eot_id,
        'ends': sorted({*tokenizer.more_ends, tokenizer.eot_id} - {None}),
        'special': tokenizer.special_tokens,
        **_encoding(tokenizer),
    }


def _encoding(tokenizer: Tokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece(tokenizer)
    if tokenizer.kind == TokenizerKind.BPE:
        return _byte_level_bpe(tokenizer)
    # The bytes of the ids say all else.
    return {'leadingSpaces': 1} if tokenizer.kind == TokenizerKind.SYMBOL else {}


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.content())
    kinds = proto.SentencePiece.Type
    algorithms = {proto.trainer_spec.BPE: 'bpe', proto.trainer_spec.UNIGRAM: 'unigram'}
    if not tokenizer.lossless or proto.trainer_spec.model_type not in algorithms:
        raise _refusal('SentencePiece models that rewrite text or have no bytes to fall back on')
    if any(piece.type == kinds.UNUSED for piece in proto.pieces):
        raise _refusal('SentencePiece models with unused pieces')
    in_text = [
        piece.type in (kinds.NORMAL, kinds.USER_DEFINED) and ' ' not in piece.piece
        for piece in proto.pieces  # spaces of a text are U+2581 when pieces are looked up
    ]
    return {
        'algorithm': algorithms[proto.trainer_spec.model_type],
        'leadingSpaces': int(proto.normalizer_spec.add_dummy_prefix),
        'scores': [
            piece.score if found else None
            for piece, found in zip(proto.pieces, in_text, strict=True)
        ],
        'whole': [
            i for i, p in enumerate(proto.pieces) if p.type == kinds.USER_DEFINED and in_text[i]
        ],
        'byteIds': [i for i, p in enumerate(proto.pieces) if p.type == kinds.BYTE],
    }


def _byte_level_bpe(tokenizer: Tokenizer) -> dict[str, Any]:
    spec = tokenizer.tokenizer_json()
    model, added = spec['model'], spec.get('added_tokens') or []
    own = [token for token in added if not token['special']]
    if model.get('type') != 'BPE' or (spec.get('decoder') or {}).get('type') != 'ByteLevel':
        raise _refusal('tokenizer.json but of byte-level BPE')
    ids = model['vocab']
    missing = not ids.keys() >= set(byte_characters())
    affixes = ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix')
    if missing or any(model.get(key) for key in affixes):
        raise _refusal('byte-level BPE that drops, marks or lacks bytes')
    if any(t['lstrip'] or t['rstrip'] or t['single_word'] for t in own):
        raise _refusal('added tokens that take the blanks around them')
    if isinstance(tokenizer, JsonTokenizer) and (spec.get('normalizer') or {}).get('type') not in (
        None,
        'NFC',
    ):
        raise _refusal('normalizers but NFC')
    pairs = [m.split(' ') if isinstance(m, str) else m for m in model['merges']]
    return {
        'normalize': 'NFC' if spec.get('normalizer') else '',
        'splits': [rule for step in _steps(spec) for rule in _rules(step)],
        'byteIds': [ids[character] for character in byte_characters()],
        'merges': [i for a, b in pairs for i in (ids[a], ids[b], ids[a + b])],
        'wholeFirst': bool(model.get('ignore_merges')),
        'added': {token['content']: token['id'] for token in own},
    }


def _steps(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    split = spec.get('pre_tokenizer') or {}
    return split['pretokenizers'] if split.get('type') == 'Sequence' else [split]


def _rules(step: Mapping[str, Any]) -> list[str]:
    """Returns the patterns of a step; each cuts texts into its matches and the parts between."""
    kind = step.get('type')
    if kind == 'ByteLevel' and not step.get('add_prefix_space', True):
        return [_script(_GPT2)] if step.get('use_regex', True) else []
    if kind == 'Digits':
        return [r'\p{N}' if step.get('individual_digits') else r'\p{N}+']
    if kind == 'Split' and step.get('behavior') == 'Isolated' and not step.get('invert'):
        pattern = (step.get('pattern') or {}).get('Regex')
        if pattern in _PATTERNS:
            return [_script(pattern)]
    raise _refusal('the rule by which this tokenizer splits texts')


def _script(pattern: str) -> str:
    """Returns a pattern in JavaScript's syntax (flag u)."""
    pattern = pattern.replace(_ANY_CASE, _ANY_CASE_SCRIPT)
    return pattern.replace(r'\s', r'\p{White_Space}').replace(r'\S', r'\P{White_Space}')


def _refusal(missing: str) -> UserError:
    return UserError(f'--format web has no {missing}; --format hf takes this tokenizer')
