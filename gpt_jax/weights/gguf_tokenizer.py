"""Tokenizers in GGUF files: SentencePiece pieces or a byte-level BPE."""

from collections.abc import Mapping
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer, TokenizerKind
from gpt_jax.tokenizer.base import TableTokenizer
from gpt_jax.tokenizer.bpe import BpeTokenizer
from gpt_jax.tokenizer.bpe_vocabulary import BpeVocabulary, byte_characters, parse_gpt2
from gpt_jax.tokenizer.char import CharTokenizer
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.tokenizer.tokenizer_json import JsonTokenizer
from gpt_jax.weights.sentencepiece_pieces import Piece, list_pieces, make_tokenizer
from gpt_jax.weights.source import ConfigReader

SENTENCEPIECE, BPE = 'llama', 'gpt2'  # tokenizer.ggml.model
_NORMAL, _UNKNOWN, _CONTROL, _USERS, _UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
_GPT2_RULE = 'gpt-2'
_LLAMA3_RULE = 'llama-bpe'
_QWEN2_RULE = 'qwen2'
_DBRX_RULE = 'dbrx'
# Pre-tokenization by tokenizer.ggml.pre: the equivalent steps of a tokenizer.json, as in the
# models that llama.cpp named the rules after (`RULES`).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _split(pattern: str) -> dict[str, Any]:
    regex = {'Regex': pattern}
    return {'type': 'Split', 'pattern': regex, 'behavior': 'Isolated', 'invert': False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        'type': 'ByteLevel',
        'add_prefix_space': False,
        'trim_offsets': True,
        'use_regex': use_regex,
    }


RULES: dict[str, list[dict[str, Any]]] = {
    _GPT2_RULE: [_byte_level(True)],
    'smollm': [{'type': 'Digits', 'individual_digits': True}, _byte_level(True)],
    _LLAMA3_RULE: [_split(_WORDS.format(digits='{1,3}')), _byte_level(False)],
    _QWEN2_RULE: [_split(_WORDS.format(digits='')), _byte_level(False)],
    _DBRX_RULE: [_split(_WORDS.format(digits='{1,3}')), _byte_level(False)],  # merges as usual
}
# Other names of these rules in files: Pythia and OLMo, StableLM 2, Smaug.
_SAME_RULES = {
    'mpt': _GPT2_RULE,
    'olmo': _GPT2_RULE,
    'stablelm2': _QWEN2_RULE,
    'smaug-bpe': _DBRX_RULE,
}
# Keys below tokenizer.ggml. that affect neither the ids of a text nor its start and end tokens.
_INERT = (
    *('unknown_token_id', 'padding_token_id', 'seperator_token_id', 'mask_token_id'),
    *('cls_token_id', 'token_type_count'),
    *('prefix_token_id', 'suffix_token_id', 'middle_token_id'),
    *(f'fim_{part}_token_id' for part in ('pre', 'suf', 'mid', 'pad', 'rep', 'sep')),
)


def read_tokenizer(metadata: Mapping[str, Any], *, name: str) -> TableTokenizer | None:
    """Returns the tokenizer of a file; None if it has none.

    Args:
      metadata: the keys below `tokenizer.ggml.`, without that prefix.
      name: the file's name for error messages.

    Raises:
        UserError: the tokenizer is not supported; the message names the key.
    """
    c = ConfigReader(metadata, name=f'{name}, tokenizer.ggml')
    if c.require('model', None, 'no_vocab', 'none', SENTENCEPIECE, BPE) not in (SENTENCEPIECE, BPE):
        return None
    tokens = c.take_list('tokens', str)
    kinds = c.take_list('token_type', int, None) or [_NORMAL] * len(tokens)
    c.require('add_eos_token', False)
    c.require('add_sep_token', False)
    bos_id, eot_id = c.take_int('bos_token_id', None), c.take_int('eos_token_id', None)
    begins = c.take_bool('add_bos_token', None)
    if metadata['model'] == SENTENCEPIECE:
        c.require('pre', 'default', '')
        c.require('remove_extra_whitespaces', False)
        scores = c.take_list('scores', float)
        _check_lengths(tokens, kinds, scores, name=name)
        add_prefix = c.take_bool('add_space_prefix', True)
        c.take('merges', None)  # llama.cpp uses them for BPE only
        pieces = map(Piece, tokens, scores, kinds)
        tokenizer: TableTokenizer = make_tokenizer(pieces, add_prefix=add_prefix, name=name)
        bos_id = 1 if bos_id is None else bos_id
        eot_id = 2 if eot_id is None else eot_id
        begins = True if begins is None else begins
    else:
        rule = c.require('pre', None, *RULES, *_SAME_RULES)
        rule = _SAME_RULES.get(rule, rule)
        if rule is None:
            raise UserError(
                f'{name} has no tokenizer.ggml.pre, which says how texts are split; convert the '
                f'model again with a newer llama.cpp'
            )
        c.require('add_space_prefix', False)
        c.take('scores', None)
        _check_lengths(tokens, kinds, name=name)
        tokenizer = _read_bpe(tokens, kinds, c.take_list('merges', str, []), rule=rule, name=name)
        begins = rule == _LLAMA3_RULE if begins is None else begins
    more = {key: c.take_int(f'{key}_token_id', None) for key in ('eot', 'eom')}
    c.finish(_INERT)
    for key, token_id in (('bos', bos_id), ('eos', eot_id), *more.items()):
        if token_id is not None and not 0 <= token_id < len(tokens):
            raise UserError(f'{name} has {key}_token_id={token_id}, but {len(tokens)} tokens')
    tokenizer = tokenizer.with_ends(bos_id=bos_id if begins else None, eot_id=eot_id)
    tokenizer = tokenizer.with_more_ends(sorted({*more.values()} - {None, eot_id}))
    # `tokenizer_metadata` writes the end token as bos when nothing begins a text.
    named = {
        'bos_token': bos_id if begins or bos_id != eot_id else None,
        'eos_token': eot_id,
        'pad_token': metadata.get('padding_token_id'),
    }
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    named = {key: names[i] for key, i in named.items() if i in names}
    return tokenizer.with_chat(template=None, named_tokens=named)


def _check_lengths(*lists: list[Any], name: str) -> None:
    if len({len(each) for each in lists}) > 1:
        raise UserError(
            f'{name} has another number of token types or scores than of tokens; it is damaged'
        )


def _read_bpe(
    tokens: list[str], kinds: list[int], merges: list[str], *, rule: str, name: str
) -> TableTokenizer:
    ids = {token: i for i, token in enumerate(tokens) if kinds[i] == _NORMAL}
    special = {t: i for i, t in enumerate(tokens) if kinds[i] in (_CONTROL, _UNKNOWN)}
    # Skip merges of unknown tokens: files without merges have one that never applies.
    pairs = [merge.split(' ', 1) for merge in merges]
    merges = [f'{a} {b}' for a, b in pairs if {a, b, a + b} <= ids.keys()]
    spec = BpeVocabulary(ids=ids, merges=merges, special_tokens=special).to_json()
    spec['pre_tokenizer'] = (
        RULES[rule][0]
        if len(RULES[rule]) == 1
        else {'type': 'Sequence', 'pretokenizers': RULES[rule]}
    )
    spec['model']['ignore_merges'] = rule == _LLAMA3_RULE
    users = [(i, token) for i, token in enumerate(tokens) if kinds[i] == _USERS]
    template = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized', 'special'), False)
    spec['added_tokens'] += [{'id': i, 'content': token, **template} for i, token in users]
    spec['added_tokens'].sort(key=lambda token: token['id'])
    spec['model']['vocab'] |= {token: i for i, token in users}
    vocabulary = parse_gpt2(spec)
    return JsonTokenizer(spec, name=name) if vocabulary is None else BpeTokenizer(vocabulary)


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the keys to write below `tokenizer.ggml.`.

    Raises:
        UserError: llama.cpp would produce other ids.
    """
    if tokenizer.eot_id is None:
        raise UserError(
            '--format gguf needs a token that ends texts (llama.cpp takes another one else), '
            f'which this {tokenizer.kind} tokenizer has not'
        )
    if isinstance(tokenizer, SentencePieceTokenizer):
        pieces, add_prefix = list_pieces(tokenizer, format='--format gguf')
        values: dict[str, Any] = {
            'model': SENTENCEPIECE,
            'pre': 'default',
            'tokens': [piece.text for piece in pieces],
            'scores': [float(piece.score) for piece in pieces],
            'token_type': [int(piece.kind) for piece in pieces],
            'add_space_prefix': add_prefix,
        }
    else:
        values = _bpe_metadata(tokenizer)
    values |= {'eos_token_id': tokenizer.eot_id, 'add_bos_token': tokenizer.bos_id is not None}
    named = {key: tokenizer.special_tokens[name] for key, name in tokenizer.named_tokens.items()}
    # llama.cpp falls back to a fixed id if none is given.
    begin = named.get('bos_token', tokenizer.eot_id)
    values['bos_token_id'] = begin if tokenizer.bos_id is None else tokenizer.bos_id
    if tokenizer.more_ends:
        values['eot_token_id'] = tokenizer.more_ends[0]
    if 'pad_token' in named:
        values['padding_token_id'] = named['pad_token']
    return values | {'add_eos_token': False}


def _bpe_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    spec = _ascii_bpe(tokenizer) if tokenizer.kind == TokenizerKind.CHAR else None
    spec = spec or tokenizer.tokenizer_json()
    rule = _rule_of(spec)
    special = set(tokenizer.special_tokens.values())
    added = {token['id']: token['content'] for token in spec['added_tokens'] or []}
    tokens = [f'[UNUSED{i}]' for i in range(tokenizer.vocab_size)]
    kinds = [_UNUSED] * tokenizer.vocab_size
    for token, i in (spec['model']['vocab'] | {t: i for i, t in added.items()}).items():
        if i < tokenizer.vocab_size:
            tokens[i] = token
            kinds[i] = _CONTROL if i in special else _USERS if i in added else _NORMAL
    merges = [m if isinstance(m, str) else ' '.join(m) for m in spec['model']['merges']]
    # llama.cpp requires a merge; this one never applies, as special tokens are never merged.
    end = tokens[tokenizer.eot_id]
    return {
        'model': BPE,
        'pre': rule,
        'tokens': tokens,
        'token_type': kinds,
        'merges': merges or [f'{end} {end}'],
    }


def _ascii_bpe(tokenizer: CharTokenizer) -> dict[str, Any]:
    """Converts a char tokenizer to a byte-level BPE without merges.

    Raises:
        UserError: a character has more than one byte.
    """
    wide = next((c for c in tokenizer.characters if not c.isascii()), None)
    if wide is not None:
        raise UserError(
            f'--format gguf has char tokenizers of ASCII only, and this one has {wide!r} '
            f'(U+{ord(wide):04X}); --format hf takes any'
        )
    characters = byte_characters()
    ids = {characters[ord(c)]: i for i, c in enumerate(tokenizer.characters)}
    return BpeVocabulary(ids=ids, merges=[], special_tokens=tokenizer.special_tokens).to_json()


def _rule_of(spec: Mapping[str, Any]) -> str:
    """Returns llama.cpp's name of the pre-tokenization of a tokenizer.json.

    Raises:
        UserError: llama.cpp has none.
    """
    split = spec.get('pre_tokenizer') or {}
    steps = split['pretokenizers'] if split.get('type') == 'Sequence' else [split]
    model = spec['model']
    normalizer = (spec.get('normalizer') or {}).get('type')
    if model.get('type') == 'BPE':
        for name, rule in RULES.items():
            same = [_essence(step) for step in steps] == [_essence(step) for step in rule]
            # llama.cpp's converter uses this name for Qwen's tokenizers with NFC too.
            fits = normalizer is None or (normalizer == 'NFC' and name == _QWEN2_RULE)
            if same and fits and bool(model.get('ignore_merges')) == (name == _LLAMA3_RULE):
                return name
    raise UserError(
        f'--format gguf has no name for the way in which this tokenizer splits texts (it has '
        f'{", ".join(RULES)}); --format hf takes it'
    )


def _essence(step: Mapping[str, Any]) -> dict[str, Any]:
    return {'use_regex': True} | {k: v for k, v in step.items() if k != 'trim_offsets'}
