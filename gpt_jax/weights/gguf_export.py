"""Export of a trained run to one GGUF file, which llama.cpp runs."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.fingerprint import named_leaves
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.parallel import peers
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.weights.credits import NO_CREDITS, README, Credits
from gpt_jax.weights.export import named_tensors
from gpt_jax.weights.gguf_architecture import (
    ROPE_FACTORS,
    Architecture,
    experts_name,
    rope_factors,
)
from gpt_jax.weights.gguf_families import choose
from gpt_jax.weights.gguf_file import load_library
from gpt_jax.weights.gguf_tokenizer import tokenizer_metadata
from gpt_jax.weights.layout import TABLES, TensorLayout, check_complete
from gpt_jax.weights.model_card import model_card
from gpt_jax.weights.sampling import NO_SAMPLING, to_gguf

FILE = 'model.gguf'
# `gguf`'s names of the types of --dtype, for tensors and for the whole file.
_TYPES = {
    'float32': ('F32', 'ALL_F32'),
    'float16': ('F16', 'MOSTLY_F16'),
    'bfloat16': ('BF16', 'MOSTLY_BF16'),
    'q8_0': ('Q8_0', 'MOSTLY_Q8_0'),
}
# llama.cpp combines the first two with activations, in float32 only, and never narrows routers.
_ALWAYS_FLOAT32 = ('position_embd.weight', ROPE_FACTORS, 'ffn_gate_inp.weight')
_UNUSED = 5  # tokenizer.ggml.token_type


def export_gguf(
    folder: pathlib.Path,
    model: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    credits: Credits = NO_CREDITS,
    sampling: Mapping[str, Any] = NO_SAMPLING,
) -> list[str]:
    """Writes `model.gguf`; arguments, result and errors are those of `export_transformers`.

    Vectors and learned positions are always float32. With q8_0, matrices whose row length is no
    multiple of the quantisation block are float16.
    """
    if dtype not in _TYPES:
        raise UserError(f'--format gguf has no --dtype {dtype}; choose {", ".join(_TYPES)}')
    gguf = load_library()
    architecture = choose(model)
    metadata = tokenizer_metadata(tokenizer)
    layout = architecture.layout(model)
    check_complete(layout, params, format=f"llama.cpp's {architecture.name}")
    tensors = _tensors(model, params, layout, architecture)
    if not peers.is_primary():
        for _ in tensors:
            pass
        return []
    writer = gguf.GGUFWriter(None, architecture.name)
    kind, file_kind = _TYPES[dtype]
    writer.add_type('model')
    writer.add_file_type(gguf.LlamaFileType[file_kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in {**credits.to_gguf(), **to_gguf(sampling)}.items():
        _add(writer, key, value)
    for key, value in architecture.from_model(model).items():
        _add(writer, f'{architecture.name}.{key}', value)
    for key, value in _padded(metadata, model.vocab_size).items():
        _add(writer, f'tokenizer.ggml.{key}', value)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
    types = {}
    for name, shape in _shapes(model, params, layout, architecture):
        types[name] = gguf.GGMLQuantizationType[_stored_type(gguf, name, shape, kind)]
        block, size = gguf.GGML_QUANT_SIZES[types[name]]
        num_bytes = int(np.prod(shape)) // block * size
        writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes, types[name])
    with files.atomic_file(folder / FILE) as file:
        writer.write_header_to_file(pathlib.Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, parts in itertools.groupby(tensors, lambda tensor: experts_name(tensor[0])):
            stored = [_convert(gguf, name, part, types[name]) for _, part in parts]
            writer.write_tensor_data(stored[0] if len(stored) == 1 else np.stack(stored))
        writer.close()
    card = model_card(
        model, tokenizer, architecture=architecture.name, library='gguf', credits=credits
    )
    files.write_text(folder / README, card)
    return [FILE, README]


def _tensors(
    model: ModelConfig, params: Any, layout: list[TensorLayout], architecture: Architecture
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor of the layout in float32, one at a time on the host. Collective."""
    for name, tensor in named_tensors(model, params, layout, np.float32):
        yield from architecture.store(name, tensor, model).items()
    if _has_rope_factors(model):
        yield ROPE_FACTORS, rope_factors(model)


def _shapes(
    model: ModelConfig, params: Any, layout: list[TensorLayout], architecture: Architecture
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields names and shapes of the file's tensors in the order of `_tensors`."""
    leaves, groups = named_leaves(params), parameter_groups(model)
    for entry in layout:
        shapes = {path: leaves[path].shape[entry.axes :] for path in entry.paths}
        if entry.paths[0] in TABLES:
            shapes = {path: (model.vocab_size, *shape[1:]) for path, shape in shapes.items()}
        shape = entry.shape(shapes, groups)
        if entry.experts:
            shape = (entry.experts, *shape)
        names = entry.names(model.num_layers).values()
        for name in dict.fromkeys(map(experts_name, names)):
            values = np.broadcast_to(np.float32(0), shape)  # without memory
            for stored, part in architecture.store(name, values, model).items():
                yield stored, part.shape
    if _has_rope_factors(model):
        yield ROPE_FACTORS, (model.head_dim // 2,)


def _has_rope_factors(model: ModelConfig) -> bool:
    return bool(model.rope.original_seq_len) and not model.rope.yarn


def _stored_type(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1 or name.endswith(_ALWAYS_FLOAT32):
        return 'F32'
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return kind if shape[-1] % block == 0 else 'F16'


def _convert(gguf: Any, name: str, tensor: np.ndarray, kind: Any) -> np.ndarray:
    """Returns the tensor as bytes of the type `kind`.

    Raises:
        UserError: a number is out of float16's range.
    """
    if kind.name == 'BF16':
        stored = tensor.astype(jnp.bfloat16)
    elif kind.name == 'F16':
        with np.errstate(over='ignore'):
            stored = tensor.astype(np.float16)
        if not np.isfinite(stored).all() and np.isfinite(tensor).all():
            raise UserError(f'{name} has numbers beyond float16; choose --dtype bfloat16')
    else:
        stored = gguf.quants.quantize(tensor, kind)
    return np.ascontiguousarray(stored).view(np.uint8)


def _padded(metadata: dict[str, Any], size: int) -> dict[str, Any]:
    """Returns tokenizer metadata padded to one token per table row, which llama.cpp requires."""
    missing = range(len(metadata['tokens']), size)
    fill = {'token_type': _UNUSED, 'scores': 0.0}
    padded = metadata | {'tokens': metadata['tokens'] + [f'[PAD{i}]' for i in missing]}
    for key in fill.keys() & metadata.keys():
        padded[key] = metadata[key] + [fill[key]] * len(missing)
    return padded


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
