"""Vocabularies of GPT-2's byte-level BPE: converts its file formats for tiktoken.

Files write a token with one printable character per byte ("Ġthe" is b' the'). tiktoken joins the
neighbours that make the token with the lowest id, while the files list ordered pairs. Both give the
same ids if ids increase in the order of the merges and the bytes of every token encode to that
token. `parse_gpt2` checks this.
"""

import dataclasses
import itertools
import pathlib
import re
from typing import Any

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.base import read_settings

# GPT-2's splitting rule, as written in the tokenizer.json of several model families.
_GPT2_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_PAIR_FILES = {'encoder.json': 'vocab.bpe', 'vocab.json': 'merges.txt'}  # OpenAI's, transformers'
_SPLIT_AS_GPT2 = ('gpt2', 'roberta', 'bart', 'longformer', 'codegen')  # families of transformers
TOKENIZER_JSON = 'tokenizer.json'
_MOST_SKIPPED = 1 << 16  # largest number of unused ids, besides one per token


@dataclasses.dataclass(frozen=True)
class BpeVocabulary:
    """The vocabulary of a byte-level BPE with GPT-2's splitting rule; it determines the ids."""

    ids: dict[str, int]  # of the ordinary tokens, written with one character per byte
    merges: list[str]  # 'left right', in order
    special_tokens: dict[str, int]

    def ranks(self) -> dict[bytes, int]:
        """Returns the ids of the ordinary tokens by their bytes."""
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        return {bytes(byte_of[c] for c in token): i for token, i in self.ids.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns the tokenizer.json that the `tokenizers` and `transformers` libraries read."""
        special = [
            {
                'id': token_id,
                'content': name,
                'single_word': False,
                'lstrip': False,
                'rstrip': False,
                'normalized': False,
                'special': True,
            }
            for name, token_id in sorted(self.special_tokens.items(), key=lambda item: item[1])
        ]
        byte_level = {
            'type': 'ByteLevel',
            'add_prefix_space': False,
            'trim_offsets': True,
            'use_regex': True,
        }
        return {
            'version': '1.0',
            'truncation': None,
            'padding': None,
            'added_tokens': special,
            'normalizer': None,
            'pre_tokenizer': byte_level,
            'post_processor': None,
            'decoder': byte_level,
            'model': {
                'type': 'BPE',
                'dropout': None,
                'unk_token': None,
                'continuing_subword_prefix': None,
                'end_of_word_suffix': None,
                'fuse_unk': False,
                'byte_fallback': False,
                'ignore_merges': False,
                'vocab': dict(
                    sorted((self.ids | self.special_tokens).items(), key=lambda item: item[1])
                ),
                'merges': self.merges,
            },
        }


def byte_characters() -> list[str]:
    """Returns the printable character for each of the 256 bytes in GPT-2's files."""
    printable = [chr(b) if chr(b).isprintable() and b != ord(' ') else '' for b in range(256)]
    others = iter(range(256, 512))
    return [character or chr(next(others)) for character in printable]


def read_tokenizer_json(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Reads the tokenizer.json of a folder or file, or converts GPT-2's pair of files to one.

    A pair is encoder.json + vocab.bpe (OpenAI's names) or vocab.json + merges.txt.

    Returns:
        The file that was read, for messages, and the content of the tokenizer.json.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    folder = path.parent if path.is_file() else path
    pair_files = {*_PAIR_FILES, *_PAIR_FILES.values()}
    if path.is_file() and path.name not in pair_files:
        return path, files.read_json(path)
    if not path.is_file() and (path / TOKENIZER_JSON).is_file():
        return path / TOKENIZER_JSON, files.read_json(path / TOKENIZER_JSON)
    for ids_name, merges_name in _PAIR_FILES.items():
        ids_path, merges_path = folder / ids_name, folder / merges_name
        if ids_path.is_file() and merges_path.is_file():
            check_pair(folder, read_settings(folder).get('tokenizer_class') or 'GPT2Tokenizer')
            return ids_path, _read_pair(ids_path, merges_path)
    raise UserError(
        f'{path} has no tokenizer.json, no encoder.json with vocab.bpe and no vocab.json with '
        'merges.txt; correct the path'
    )


def check_spec(spec: Any, name: str) -> None:
    """Checks that the ids of a tokenizer.json are whole numbers, unique and nearly dense.

    Raises:
        UserError: they are not, or it is no tokenizer.json; the message names the file `name`.
    """
    model = spec.get('model') if isinstance(spec, dict) else None
    if not isinstance(model, dict):
        raise UserError(f'{name} is not a tokenizer.json (it has no model); restore it')
    vocab, added = model.get('vocab', {}), spec.get('added_tokens') or []
    try:
        ids = dict(vocab) if isinstance(vocab, dict) else {t[0]: i for i, t in enumerate(vocab)}
        extra = {token['content']: token['id'] for token in added}
        if isinstance(vocab, dict) and len({*ids.values()}) < len(ids):
            raise ValueError('two tokens have one id')
        largest = max([*ids.values(), *extra.values()], default=0)
        if not all(type(i) is int and i >= 0 for i in [*ids.values(), *extra.values()]):
            raise TypeError('ids must be whole numbers')
        if largest > 2 * (len(ids) + len(extra)) + _MOST_SKIPPED:
            raise ValueError(f'the id {largest} is far beyond its {len(ids)} tokens')
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{name} is not a tokenizer.json ({reason}); restore it') from error


def check_pair(folder: pathlib.Path, kind: Any) -> None:
    """Checks that a pair of files belongs to a tokenizer or model that splits text like GPT-2.

    Raises:
        UserError: it does not; the message names `kind`, a tokenizer class or model type of
            transformers.
    """
    if not str(kind).lower().startswith(_SPLIT_AS_GPT2):
        raise UserError(
            f'{folder}: vocab.json and merges.txt do not say how {kind} splits texts; take its '
            f'tokenizer.json, which transformers writes: '
            f'AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)'
        )


def parse_gpt2(spec: Any) -> BpeVocabulary | None:
    """Returns the vocabulary of a tokenizer.json, or None if it is not a GPT-2-style BPE."""
    try:
        if not _is_gpt2_style(spec):
            return None
        model = spec['model']
        merges = [m if isinstance(m, str) else ' '.join(m) for m in model['merges']]
        special = {token['content']: token['id'] for token in spec['added_tokens'] or []}
        ids = {token: i for token, i in model['vocab'].items() if token not in special}
        pairs = [tuple(merge.split(' ')) for merge in merges]
        results = [ids[left + right] for left, right in pairs]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    made = {*byte_characters(), *(left + right for left, right in pairs)}
    rising = all(a < b for a, b in itertools.pairwise(results))
    closed = ids.keys() == made and made.issuperset(part for pair in pairs for part in pair)
    if not (rising and closed and _encode_to_themselves(ids, pairs)):
        return None
    return BpeVocabulary(ids=ids, merges=merges, special_tokens=special)


def _is_gpt2_style(spec: dict[str, Any]) -> bool:
    model, split = spec['model'], spec['pre_tokenizer']
    if split['type'] == 'Sequence' and len(split['pretokenizers']) == 2:
        regex, split = split['pretokenizers']
        by_gpt2_rule = (
            regex['type'] == 'Split'
            and regex['pattern'] == {'Regex': _GPT2_SPLIT}
            and regex['behavior'] == 'Isolated'
            and not regex['invert']
            and not split.get('use_regex', True)
        )
    else:
        by_gpt2_rule = split.get('use_regex', True)
    return (
        by_gpt2_rule
        and split['type'] == 'ByteLevel'
        and not split['add_prefix_space']
        and spec['decoder']['type'] == 'ByteLevel'
        and spec['normalizer'] is None
        and all(token['special'] for token in spec['added_tokens'] or [])
        and model['type'] == 'BPE'
        and not model.get('dropout')
        and not model.get('continuing_subword_prefix')
        and not model.get('end_of_word_suffix')
    )


def _encode_to_themselves(ids: dict[str, int], pairs: list[tuple[str, str]]) -> bool:
    from tokenizers import models

    model = models.BPE(vocab=ids, merges=pairs)
    return all(len(model.tokenize(token)) == 1 for token in ids)


def _read_pair(ids_path: pathlib.Path, merges_path: pathlib.Path) -> dict[str, Any]:
    ids = files.read_json(ids_path)
    if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
        raise UserError(f'{ids_path} must map tokens to ids; restore the file')
    check_spec({'model': {'vocab': ids}}, str(ids_path))
    lines = re.split(r'\r?\n', files.read_text(merges_path))
    merges = [line for line in lines if line and not line.startswith('#version')]
    made = {*byte_characters(), *(merge.replace(' ', '') for merge in merges)}
    special = {token: i for token, i in ids.items() if token not in made}
    ids = {token: i for token, i in ids.items() if token in made}
    return BpeVocabulary(ids=ids, merges=merges, special_tokens=special).to_json()
