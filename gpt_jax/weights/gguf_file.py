"""GGUF, llama.cpp's files: metadata, a tokenizer, and tensors that may be quantised.

The `gguf` library parses files and de-quantises; tensors of floats are views of the mapped file,
others are de-quantised to float32 one at a time, when they are read.
"""

import functools
import importlib
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig
from gpt_jax.weights import gguf_architecture as architectures
from gpt_jax.weights.gguf_tokenizer import read_tokenizer
from gpt_jax.weights.rope_pairs import from_pairs
from gpt_jax.weights.source import Source, StoredTensor

TYPES = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K')
_TOKENIZER = 'tokenizer.ggml.'
# About the file and its making; chat templates beside the default one.
_INERT = (
    r'general\..+|GGUF\..+|quantize\.imatrix\..+|tokenizer\.(chat_template.*|huggingface\.json)'
)


def read(path: pathlib.Path) -> Source:
    """Reads `NAME.gguf` of one of `gguf_architecture.ARCHITECTURES`.

    Raises:
        UserError: the `gguf` library is absent; the file is damaged or one of several parts; a
            key, an architecture or a type of tensors is not supported, naming it.
    """
    file = _open(path)
    metadata = {key: _value(path, field) for key, field in file.fields.items()}
    kind = metadata.get('general.architecture')
    if kind not in architectures.ARCHITECTURES:
        raise UserError(
            f'{path} has general.architecture={kind!r}, which is not supported; supported: '
            f'{", ".join(architectures.ARCHITECTURES)}'
        )
    if metadata.pop('split.count', 1) > 1:
        raise UserError(f'{path} is one part of several; join them with llama-gguf-split --merge')
    known = rf'{kind}\..+|{re.escape(_TOKENIZER)}.+|split\..+|{_INERT}'
    unknown = next((key for key in metadata if not re.fullmatch(known, key)), None)
    if unknown:
        raise UserError(f'{path} has the key {unknown}, which is not supported')
    tensors = {tensor.name: _stored(path, tensor) for tensor in file.tensors}
    factors = tensors.pop(architectures.ROPE_FACTORS, None)
    table = tensors.get('token_embd.weight')
    if table is None:
        raise UserError(f'{path} has no token_embd.weight; it holds no whole model')
    model = architectures.to_model(
        _below(metadata, f'{kind}.') | {'architecture': kind},
        vocab_size=table.shape[0],
        tie_embeddings=architectures.OUTPUT not in tensors,
        rope_factors=factors.read() if factors else None,
        name=str(path),
    )
    model = freeze(model)
    return Source(
        name=str(path),
        model=model,
        layout=architectures.layout(model, architecture=kind),
        tensors={
            name: _in_our_order(name, tensor, model, kind) for name, tensor in tensors.items()
        },
        tokenizer=read_tokenizer(_below(metadata, _TOKENIZER), name=str(path)),
        chat_template=metadata.get('tokenizer.chat_template'),
    )


def load_library() -> Any:
    """The `gguf` library.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module('gguf')
    except ImportError as error:
        raise UserError("GGUF files need the gguf library: pip install -e '.[gguf]'") from error


def _open(path: pathlib.Path) -> Any:
    """The library's reader of a file, on which nothing but metadata was read."""
    gguf = load_library()
    try:
        file = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{path} is not a GGUF file, or is torn ({reason}); fetch it again'
        ) from error
    if file.byte_order != 'I':
        raise UserError(f'{path} is of the other byte order; convert it with gguf-convert-endian')
    return file


def _value(path: pathlib.Path, field: Any) -> Any:
    try:
        return field.contents()
    except (ValueError, IndexError) as error:
        raise UserError(f'{path}: {field.name} is damaged ({error}); fetch it again') from error


def _below(metadata: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}


def _stored(path: pathlib.Path, tensor: Any) -> StoredTensor:
    kind = tensor.tensor_type.name
    if kind not in TYPES:
        raise UserError(
            f'{path}: {tensor.name} has the type {kind}; only {", ".join(TYPES)} are read'
        )
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return StoredTensor(shape, functools.partial(_read, tensor))


def _read(tensor: Any) -> np.ndarray:
    kind = tensor.tensor_type.name
    if kind in ('F32', 'F16'):
        return tensor.data
    if kind == 'BF16':
        return tensor.data.view(jnp.bfloat16)
    return load_library().quants.dequantize(tensor.data, tensor.tensor_type)


def _in_our_order(name: str, tensor: StoredTensor, model: ModelConfig, kind: str) -> StoredTensor:
    def read_turned() -> np.ndarray:
        return architectures.reorder(from_pairs, name, tensor.read(), model, architecture=kind)

    return StoredTensor(tensor.shape, read_turned)
