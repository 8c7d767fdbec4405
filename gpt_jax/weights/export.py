"""Export of trained weights to folders that other tools read.

Tensors are gathered, transposed and written one at a time. In a multi-process run all processes
must take part; process 0 writes.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.fingerprint import named_leaves
from gpt_jax.model.config import DType, ModelConfig
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.parallel import peers
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.tokenizer.base import CHAT_TEMPLATE
from gpt_jax.weights import native, safetensors_files
from gpt_jax.weights.credits import NO_CREDITS, README, Credits
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.layout import TABLES, TensorLayout, check_complete, unsupported
from gpt_jax.weights.model_card import is_model_card, model_card
from gpt_jax.weights.sampling import NO_SAMPLING, to_generation_config
from gpt_jax.weights.transformers_folder import (
    CONFIG,
    FAMILIES,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    Family,
)

# Names of the files that the exporters write, in any format.
_EXPORTED = re.compile(
    r'model[-.0-9a-z]*\.(safetensors|safetensors\.index\.json|gguf|bin)|README\.md|config\.json'
    r'|(generation_config|tokenizer|tokenizer_config)\.json|tokenizer\.bin|chat_template\.jinja'
    r'|model\.json|index\.html|style\.css|scripts'
)


def check_folder(folder: pathlib.Path, *, key: str) -> None:
    """Rejects a folder with files in it, unless all of them come from an earlier export.

    Raises:
        UserError: names the folder and one of its files; `key` is the folder's flag or argument.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    foreign = [name for name in names if not _EXPORTED.fullmatch(name)]
    if names and not foreign:
        card = folder / README
        if not card.is_file() or not is_model_card(card.read_bytes()):
            foreign = [README if card.exists() else names[0]]
    if folder.is_file() or foreign:
        raise UserError(
            f'{key}={folder} is not empty (it has {(foreign or ["a file of that name"])[0]}); '
            f'name a new folder'
        )


def export_transformers(
    folder: pathlib.Path,
    model: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    credits: Credits = NO_CREDITS,
    sampling: Mapping[str, Any] = NO_SAMPLING,
    model_type: str = '',
) -> list[str]:
    """Writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Args:
      folder: the output folder; created if missing.
      model: the architecture.
      params: parameters in the stored layout, sharded or not.
      tokenizer: the tokenizer that the model was trained with.
      dtype: the type of the stored tensors: float32 or bfloat16.
      credits: the credits of the run, for the model card.
      sampling: default sampling settings: fields of `SampleConfig` by name.
      model_type: the family of transformers, such as 'mistral'; '': the first that expresses the
        architecture.

    Returns:
      The names of the files.

    Raises:
        UserError: no family of transformers expresses the architecture (the message says why), or
            a file cannot be written.
    """
    family = choose_family(model, model_type)
    config = family.from_model(model) | {
        'dtype': str(dtype),
        'torch_dtype': str(dtype),  # its name before transformers 5
        **_ends(tokenizer),
    }
    layout = family.layout(model)
    check_complete(layout, params, format=f'{family.model_types[0]} of transformers')
    tensors = _tensors(model, params, layout, dtype)
    return _write(folder, config, tensors, model, tokenizer, credits, sampling)


def export_safetensors(
    folder: pathlib.Path,
    model: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    credits: Credits = NO_CREDITS,
    sampling: Mapping[str, Any] = NO_SAMPLING,
) -> list[str]:
    """Writes the parameters under their own paths; supports any architecture.

    Arguments, result and errors are those of `export_transformers`.
    """
    config = native.from_model(model)
    layout = native.layout(model)
    check_complete(layout, params, format='--format safetensors')
    tensors = _tensors(model, params, layout, dtype)
    return _write(folder, config, tensors, model, tokenizer, credits, sampling)


def choose_family(model: ModelConfig, model_type: str = '') -> Family | DescribedFamily:
    """Returns the first family of transformers, or the one named, that expresses an architecture.

    Raises:
        UserError: there is none; the message names the obstacle of each family.
    """
    obstacles: dict[str, list[str]] = {}
    for family in FAMILIES:
        if family.model_types == native.MODEL_TYPES or model_type not in ('', *family.model_types):
            continue
        if reason := unsupported(model, family.capabilities) or family.obstacle(model):
            obstacles.setdefault(reason, []).append(family.model_types[0])
        else:
            return family
    reasons = '; '.join(f'no {reason} in {", ".join(kinds)}' for reason, kinds in obstacles.items())
    raise UserError(
        f'no family of transformers expresses this architecture ({reasons}); '
        f'--format safetensors takes any'
    )


def named_tensors(
    model: ModelConfig, params: Any, layout: list[TensorLayout], dtype: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of another format, one at a time on the host. Collective."""
    leaves, groups = named_leaves(params), parameter_groups(model)
    for entry in layout:
        for index, name in entry.names(model.num_layers).items():
            parts = {path: _on_host(leaves[path], index) for path in entry.paths}
            if entry.paths[0] in TABLES:
                parts = {path: part[: model.vocab_size] for path, part in parts.items()}
            yield name, entry.join(parts, groups).astype(dtype)


def write_tokenizer(folder: pathlib.Path, tokenizer: Tokenizer, *, max_length: int) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    spec = dict(tokenizer.tokenizer_json())
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    settings = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': max_length,
        'clean_up_tokenization_spaces': False,
        **tokenizer.named_tokens,
    }
    spec['post_processor'] = None
    if tokenizer.bos_id is not None:
        settings.setdefault('bos_token', names[tokenizer.bos_id])
        spec['post_processor'] = _begin_with(names[tokenizer.bos_id], tokenizer.bos_id)
    if tokenizer.eot_id in names:  # else an ordinary token, given by id in config.json
        settings.setdefault('eos_token', names[tokenizer.eot_id])
    files.write_json(folder / TOKENIZER_JSON, spec)
    files.write_json(folder / TOKENIZER_CONFIG, settings)


def _tensors(
    model: ModelConfig, params: Any, layout: list[TensorLayout], dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    if dtype not in [*DType]:
        raise UserError(
            f'--dtype {dtype} is not for folders of safetensors; choose {" or ".join(DType)}'
        )
    return named_tensors(model, params, layout, np.dtype(str(dtype)))


def _write(
    folder: pathlib.Path,
    config: dict[str, Any],
    tensors: Iterator[tuple[str, np.ndarray]],
    model: ModelConfig,
    tokenizer: Tokenizer,
    credits: Credits,
    sampling: Mapping[str, Any],
) -> list[str]:
    if not peers.is_primary():
        for _ in tensors:
            pass
        return []
    names = safetensors_files.write(folder, tensors, {'format': 'pt'})
    write_tokenizer(folder, tokenizer, max_length=model.max_seq_len)
    generation = _ends(tokenizer) | to_generation_config(sampling)
    files.write_json(folder / GENERATION_CONFIG, generation)
    names += [TOKENIZER_JSON, TOKENIZER_CONFIG, GENERATION_CONFIG]
    if tokenizer.chat_template is not None:
        files.write_text(folder / CHAT_TEMPLATE, tokenizer.chat_template)
        names.append(CHAT_TEMPLATE)
    files.write_text(folder / README, _card(model, tokenizer, config, credits))
    files.write_json(folder / CONFIG, config)  # last: without it the folder does not load
    return [*names, README, CONFIG]


def _card(
    model: ModelConfig, tokenizer: Tokenizer, config: dict[str, Any], credits: Credits
) -> str:
    architecture = config['model_type']
    library = 'gpt_jax' if architecture in native.MODEL_TYPES else 'transformers'
    return model_card(model, tokenizer, architecture=architecture, library=library, credits=credits)


def _ends(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    end = [tokenizer.eot_id, *tokenizer.more_ends] if tokenizer.more_ends else tokenizer.eot_id
    ends = {'bos_token_id': tokenizer.bos_id, 'eos_token_id': end}
    return {key: token_id for key, token_id in ends.items() if token_id is not None}


def _begin_with(name: str, token_id: int) -> dict[str, Any]:
    """Returns the post-processor of a tokenizer.json that prepends one token to every text."""
    begin = {'SpecialToken': {'id': name, 'type_id': 0}}
    first, second = ({'Sequence': {'id': i, 'type_id': t}} for i, t in (('A', 0), ('B', 1)))
    return {
        'type': 'TemplateProcessing',
        'single': [begin, first],
        'pair': [begin, first, begin, second],
        'special_tokens': {name: {'id': name, 'ids': [token_id], 'tokens': [name]}},
    }


def _on_host(leaf: jax.Array, index: tuple[int, ...]) -> np.ndarray:
    """Gathers a parameter, at an index into its first axes, to the host."""
    if leaf.is_fully_addressable:
        return np.asarray(leaf[index] if index else leaf)
    whole = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    gathered = _gather(whole)(leaf, index)
    return np.asarray(gathered.addressable_data(0))


@functools.cache
def _gather(sharding: NamedSharding):
    """Returns a jitted `(leaf, index)` -> the leaf at an index into its first axes, replicated."""

    def gather(leaf: jax.Array, index: tuple[int, ...]) -> jax.Array:
        for i in index:
            leaf = jax.lax.dynamic_index_in_dim(leaf, i, 0, False)
        return leaf

    return jax.jit(gather, out_shardings=sharding)
