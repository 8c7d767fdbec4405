"""Export of a trained run to a folder that runs it in a web browser."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gpt_jax import files, web
from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import count_params, parameter_groups
from gpt_jax.model.weight_rounding import RoundedType, has_int8_form, quantize
from gpt_jax.parallel import peers
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.weights.credits import NO_CREDITS, README, Credits
from gpt_jax.weights.export import named_tensors
from gpt_jax.weights.layout import TensorLayout, check_complete
from gpt_jax.weights.model_card import model_card
from gpt_jax.weights.sampling import NO_SAMPLING
from gpt_jax.weights.web_model import describe_model, layout
from gpt_jax.weights.web_tokenizer import describe_tokenizer

MODEL, WEIGHTS = 'model.json', 'model.bin'
_ALIGNMENT = 16  # of tensors in the file, in bytes
PAGE_SAMPLING = ('prompt', 'max_new_tokens', 'temperature', 'top_k', 'top_p', 'min_p')
PAGE_SAMPLING += ('repetition_penalty', 'presence_penalty', 'frequency_penalty', 'stop', 'seed')


def export_web(
    folder: pathlib.Path,
    model: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    credits: Credits = NO_CREDITS,
    sampling: Mapping[str, Any] = NO_SAMPLING,
) -> list[str]:
    """Writes the page, its scripts, the tokenizer and the weights of a model.

    Arguments, result and errors are those of `export_transformers`.
    """
    if dtype not in [*RoundedType]:
        raise UserError(f'--format web has no --dtype {dtype}; choose {", ".join(RoundedType)}')
    described = describe_model(model)
    encoding = describe_tokenizer(tokenizer)
    entries = layout(model)
    check_complete(entries, params, format='--format web')
    tensors = _rounded(model, params, entries, dtype)
    if not peers.is_primary():
        for _ in tensors:
            pass
        return []
    index = _write_weights(folder / WEIGHTS, tensors)
    page = web.browser_files()
    for name, text in page.items():
        files.write_text(folder / name, text)
    card = model_card(model, tokenizer, architecture='gpt_jax', library='web', credits=credits)
    files.write_text(folder / README, card)
    stated = {name: sampling[name] for name in PAGE_SAMPLING if name in sampling}
    whole = {
        'name': credits.name or 'A language model',
        'about': describe_size(model, f'as {dtype}'),
        'model': described,
        'tokenizer': encoding,
        'sampling': stated,
        'tensors': index,
    }
    with files.atomic_file(folder / MODEL, 'w') as file:  # last: without it nothing loads
        json.dump(whole, file, separators=(',', ':'), allow_nan=False)
    return [WEIGHTS, *page, README, MODEL]


def _rounded(
    model: ModelConfig, params: Any, entries: list[TensorLayout], dtype: str
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yields the arrays of each tensor: its values and, for int8, its scales. Collective."""
    groups = parameter_groups(model)
    for entry in entries:
        path = entry.paths[0]
        has_scales = dtype == RoundedType.INT8 and has_int8_form(path, groups.declared[path])
        for name, tensor in named_tensors(model, params, [entry], np.float32):
            if has_scales:
                values, scale = quantize(tensor, (tensor.ndim - 1,))
                yield name, [np.asarray(values), np.asarray(scale)]
            elif dtype == RoundedType.INT8:
                yield name, [tensor]
            else:
                stored = _narrow(tensor, dtype)
                if not np.isfinite(stored.astype(np.float32)).all():
                    raise UserError(
                        f'{name} has numbers beyond {dtype}; choose --dtype bfloat16 or float32'
                    )
                yield name, [stored]


def _narrow(tensor: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over='ignore'):
        return tensor.astype(np.dtype(str(dtype)))


def _write_weights(
    path: pathlib.Path, tensors: Iterator[tuple[str, list[np.ndarray]]]
) -> dict[str, dict[str, Any]]:
    """Writes the arrays one after the other; returns the type, shape and place of each tensor."""
    index = {}
    with files.atomic_file(path) as file:
        for name, arrays in tensors:
            offsets = []
            for array in arrays:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offsets.append(file.tell())
                file.write(np.ascontiguousarray(array, array.dtype.newbyteorder('<')).tobytes())
            index[name] = {
                'type': str(arrays[0].dtype),
                'shape': arrays[0].shape,
                'offset': offsets[0],
                'scales': offsets[1] if len(offsets) > 1 else None,
            }
    return index


def describe_size(model: ModelConfig, detail: str) -> str:
    """Returns the line below the name of a model on its page."""
    return (
        f'{count_params(model):,} parameters in {model.num_layers} layers, {detail}; '
        f'context of {model.max_seq_len} tokens'
    )
