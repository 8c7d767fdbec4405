"""Reader of transformers' folders: config.json, safetensors, and a tokenizer."""

import pathlib
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tokenizers

from gpt_jax import files
from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig, finalize_model
from gpt_jax.tokenizer.base import CHAT_TEMPLATE, END_OF_TEXT, TableTokenizer
from gpt_jax.tokenizer.bpe import BpeTokenizer
from gpt_jax.tokenizer.bpe_vocabulary import TOKENIZER_JSON, check_pair
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.weights import credits, gpt2, llama, native, safetensors_files, sampling
from gpt_jax.weights.deepseek_v2 import DEEPSEEK_V2
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.gemma2 import GEMMA2
from gpt_jax.weights.gemma3 import GEMMA3
from gpt_jax.weights.gpt_neox import GPT_NEOX
from gpt_jax.weights.layout import TensorLayout
from gpt_jax.weights.mixtral import MIXTRAL
from gpt_jax.weights.olmo2 import OLMO2
from gpt_jax.weights.olmoe import OLMOE
from gpt_jax.weights.opt import OPT
from gpt_jax.weights.phi3 import PHI3
from gpt_jax.weights.qwen3_moe import QWEN3_MOE
from gpt_jax.weights.smollm3 import SMOLLM3
from gpt_jax.weights.source import Source, optional_text, without_keys
from gpt_jax.weights.stablelm import STABLELM

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = (
    'config.json',
    'generation_config.json',
    'tokenizer_config.json',
)
# Special tokens with a role, by their names in transformers and its chat templates.
NAMED_TOKENS = (
    'bos_token',
    'eos_token',
    'pad_token',
    'unk_token',
    'sep_token',
    'cls_token',
    'mask_token',
)
PATTERNS = (
    '*.json',
    '*.safetensors',
    '*.model',
    '*.jinja',
    'vocab.bpe',
    'merges.txt',
    credits.README,
)


class Family(NamedTuple):
    """A family of models whose config.json and tensors follow one scheme."""

    model_types: Sequence[str]
    to_model: Callable[..., ModelConfig]
    from_model: Callable[[ModelConfig], dict[str, Any]]
    layout: Callable[[ModelConfig], list[TensorLayout]]
    without_weights: str  # pattern of tensors that are no parameters
    capabilities: dict[str, tuple[Any, ...]]
    obstacle: Callable[[ModelConfig], str]
    output: str = 'lm_head.weight'  # the output layer, absent if tied to the embedding table


def _family(module: types.ModuleType) -> Family:
    return Family(
        module.MODEL_TYPES,
        module.to_model,
        module.from_model,
        module.layout,
        module.WITHOUT_WEIGHTS,
        module.CAPABILITIES,
        module.obstacle,
    )


# An export takes the first that expresses the architecture.
FAMILIES: tuple[Family | DescribedFamily, ...] = (
    _family(gpt2),
    *llama.FAMILIES,
    GPT_NEOX,
    OLMO2,
    GEMMA2,
    PHI3,
    STABLELM,
    OPT,
    MIXTRAL,
    OLMOE,
    QWEN3_MOE,
    SMOLLM3,
    GEMMA3,
    DEEPSEEK_V2,
    _family(native),
)


def read(folder: pathlib.Path, ignore_keys: Sequence[str] = ()) -> Source:
    """Reads a folder.

    Raises:
        UserError: a file is missing or damaged, or the model is not supported.
    """
    config = files.read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get('model_type'), str):
        raise UserError(f'{folder / CONFIG} names no model_type; it is not of transformers')
    config = without_keys(config, ignore_keys, name=str(folder / CONFIG))
    family = next((f for f in FAMILIES if config['model_type'] in f.model_types), None)
    if family is None:
        known = ', '.join(kind for f in FAMILIES for kind in f.model_types)
        raise UserError(
            f'{folder / CONFIG} has model_type={config["model_type"]!r}, which is not supported; '
            f'supported: {known}'
        )
    model = family.to_model(config, name=str(folder / CONFIG))
    finalize_model(model)
    model = freeze(model)
    tensors = safetensors_files.read(folder)
    layout = family.layout(model)
    if family.model_types == gpt2.MODEL_TYPES and 'wte.weight' in tensors:
        layout = gpt2.layout(model, prefix='')  # OpenAI's files have no prefix
    without_weights = family.without_weights
    if model.tie_embeddings and family.output in tensors:
        _check_tied(folder, tensors, output=family.output, table=layout[0].name)
        without_weights = f'{without_weights}|{re.escape(family.output)}'
    return Source(
        name=str(folder),
        model=model,
        layout=layout,
        tensors=tensors,
        without_weights=without_weights,
        tokenizer=read_tokenizer(folder, config),
        chat_template=_chat_template(folder),
        credits=credits.read_folder(folder, config),
        sampling=sampling.read_generation_config(_read_optional(folder / GENERATION_CONFIG)),
    )


def read_tokenizer(folder: pathlib.Path, config: dict[str, Any]) -> TableTokenizer | None:
    """Returns the tokenizer of a folder, with the model's end tokens; None if it has none.

    Raises:
        UserError: its files are damaged, or need a feature that is not supported.
    """
    settings = _read_optional(folder / TOKENIZER_CONFIG)
    if (folder / TOKENIZER_JSON).is_file():
        tokenizer = BpeTokenizer.read(folder / TOKENIZER_JSON)
        bos_id = _first_id(folder / TOKENIZER_JSON, settings)
    elif (folder / 'tokenizer.model').is_file():
        tokenizer = SentencePieceTokenizer.read(folder / 'tokenizer.model')
        # The default of transformers' LlamaTokenizer.
        begins = settings.get('add_bos_token', True)
        bos_id = tokenizer.special_tokens.get('<s>') if begins else None
        if settings.get('add_eos_token'):
            raise UserError(f'{folder / TOKENIZER_CONFIG}: add_eos_token=true is not supported')
        _check_added(folder, settings, tokenizer)
    elif (folder / 'vocab.json').is_file() or (folder / 'encoder.json').is_file():
        check_pair(folder, settings.get('tokenizer_class') or config.get('model_type'))
        tokenizer, bos_id = BpeTokenizer.read(folder), None
        _check_added(folder, settings, tokenizer)
    else:
        return None
    stated = _ends(folder, tokenizer, settings, _read_optional(folder / GENERATION_CONFIG), config)
    ends = [token_id for token_id in stated if 0 <= token_id < tokenizer.vocab_size]
    eot_id = ends[0] if ends else None
    if stated and not ends:
        # Transformers writes a default id, of another vocabulary, for a new model.
        eot_id = tokenizer.special_tokens.get(_text(settings.get('eos_token')))
        if eot_id is None:
            raise UserError(
                f'{folder} has eos_token_id={stated[0]}, but its tokenizer {tokenizer.vocab_size} '
                f'tokens; correct it in {CONFIG} and {GENERATION_CONFIG}'
            )
    tokenizer = tokenizer.with_ends(bos_id=bos_id, eot_id=eot_id).with_more_ends(ends[1:])
    named = {key: _text(settings.get(key)) for key in NAMED_TOKENS}
    named = {key: name for key, name in named.items() if name in tokenizer.special_tokens}
    return tokenizer.with_chat(template=None, named_tokens=named)


def _ends(
    folder: pathlib.Path,
    tokenizer: TableTokenizer,
    settings: dict[str, Any],
    generation: dict[str, Any],
    config: dict[str, Any],
) -> list[int]:
    """Returns the ids that end a text, starting with the tokenizer's own end token.

    Raises:
        UserError: an id is no integer.
    """
    stated = generation.get('eos_token_id', config.get('eos_token_id'))
    ids = stated if isinstance(stated, list) else [stated]
    if stated is None or not ids:
        return [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    if not all(type(token_id) is int for token_id in ids):
        raise UserError(
            f'{folder} has eos_token_id={str(stated)[:80]!r}, which must be an id or a list of '
            f'ids; correct it in {CONFIG} and {GENERATION_CONFIG}'
        )
    preferred = tokenizer.special_tokens.get(_text(settings.get('eos_token')))
    return sorted(dict.fromkeys(ids), key=lambda token_id: token_id != preferred)


def _check_added(folder: pathlib.Path, settings: dict[str, Any], tokenizer: TableTokenizer) -> None:
    """Rejects tokens added outside the tokenizer's own files; a tokenizer.json includes them."""
    added = {i: name for name, i in _read_optional(folder / 'added_tokens.json').items()}
    decoder = settings.get('added_tokens_decoder') or {}
    try:
        added |= {int(i): _text(token) for i, token in decoder.items()}
        added = {int(i): name for i, name in added.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{folder} adds tokens whose ids are no numbers; restore it') from error
    end = tokenizer.special_tokens.get(END_OF_TEXT)  # may be absent from the files
    for token_id, name in sorted(added.items()):
        if token_id >= tokenizer.vocab_size or (token_id == end and name != END_OF_TEXT):
            raise UserError(
                f'{folder} adds {name!r} as token {token_id} to its tokenizer, which is read from '
                f'a tokenizer.json only; transformers writes one: '
                f'AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)'
            )


def _first_id(path: pathlib.Path, settings: dict[str, Any]) -> int | None:
    """Returns the token that a tokenizer.json prepends to every text; None if it adds none.

    Raises:
        UserError: it prepends several, or appends any; or the library cannot load the file.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f'{path} is damaged ({str(error)[:200]}); fetch it again') from error
    tokenizer.no_padding()
    for text in ('a', '0', '.', ''):
        bare, whole = (
            tokenizer.encode(text, add_special_tokens=each).ids for each in (False, True)
        )
        if bare:
            break
    count = len(whole) - len(bare)
    if count == 0 or settings.get('add_bos_token') is False:
        return None
    if count > 1 or whole[1:] != bare:
        raise UserError(
            f'{path} puts {whole} for {bare}, which is {text!r}; supported is one token before '
            f'every text and none behind'
        )
    return whole[0]


def _text(token: Any) -> str | None:
    """Returns the text of a token in tokenizer_config.json; None if it has none."""
    text = token.get('content') if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _chat_template(folder: pathlib.Path) -> str | None:
    """Returns the chat template of a folder; None if it has none."""
    if (folder / CHAT_TEMPLATE).is_file():
        return files.read_text(folder / CHAT_TEMPLATE)
    template = _read_optional(folder / TOKENIZER_CONFIG).get('chat_template')
    if isinstance(template, list) and all(isinstance(each, dict) for each in template):
        named = [each.get('template') for each in template if each.get('name') == 'default']
        template = named[0] if named else None  # the default of several named templates
    return optional_text(template, key=f'{folder / TOKENIZER_CONFIG}: chat_template')


def _read_optional(path: pathlib.Path) -> dict[str, Any]:
    values = files.read_json(path) if path.is_file() else {}
    return values if isinstance(values, dict) else {}


def _check_tied(folder: pathlib.Path, tensors: Any, *, output: str, table: str) -> None:
    """Rejects a stored output layer that differs from the tied table, as it would be ignored."""
    if table in tensors:
        outputs, embedding = tensors[output].read(), tensors[table].read()
        if outputs.shape == embedding.shape and (outputs == embedding).all():
            return
    raise UserError(
        f'{folder} has a {output} of its own, though its config says tie_word_embeddings; '
        f'one of them is wrong'
    )
