"""Reader of GGUF, llama.cpp's format: metadata, a tokenizer, and possibly quantised tensors.

Float tensors are views of the memory-mapped file. The `gguf` library de-quantises all others to
float32, one at a time, when they are read.
"""

import functools
import importlib
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig
from gpt_jax.weights import credits, sampling
from gpt_jax.weights import gguf_families as families
from gpt_jax.weights.gguf_architecture import ROPE_FACTORS, Architecture, expert_name
from gpt_jax.weights.gguf_header import ARCHITECTURE, TensorInfo, read_header
from gpt_jax.weights.gguf_latent import join_up_projections
from gpt_jax.weights.gguf_tokenizer import read_tokenizer
from gpt_jax.weights.source import Source, StoredTensor, optional_text, without_keys

_FLOATS = {'F32': np.float32, 'F16': np.float16, 'BF16': jnp.bfloat16, 'F64': np.float64}
_TOKENIZER = 'tokenizer.ggml.'


def read(path: pathlib.Path, ignore_keys: Sequence[str] = ()) -> Source:
    """Reads `NAME.gguf` of one of `gguf_families.NAMES`.

    Only keys below the architecture's name and the tokenizer's affect the logits. Of the others,
    only those of `credits` and `sampling` are read.

    Raises:
        UserError: the `gguf` library is not installed; the file is damaged or one of several
            parts; or a key, an architecture or a tensor type is not supported (named).
    """
    load_library()
    header = read_header(path, families.NAMES)
    metadata = without_keys(header.metadata, ignore_keys, name=str(path))
    kind = metadata[ARCHITECTURE]
    if metadata.pop('split.count', 1) not in (0, 1):
        raise UserError(f'{path} is one part of several; join them with llama-gguf-split --merge')
    data = np.memmap(path, mode='r')[header.data_offset :]
    tensors = {tensor.name: _stored(path, tensor, data) for tensor in header.tensors}
    factors = tensors.pop(ROPE_FACTORS, None)
    table = tensors.get('token_embd.weight')
    if table is None:
        raise UserError(f'{path} has no token_embd.weight; it holds no whole model')
    keys = _below(metadata, f'{kind}.')
    architecture = families.find(kind, keys)
    model = architecture.to_model(
        keys,
        vocab_size=table.shape[0],
        names=tensors,
        rope_factors=factors.read() if factors else None,
        name=str(path),
    )
    model = freeze(model)
    experts = getattr(model.mlp, 'num_experts', 0)
    parts = (part for tensor in header.tensors for part in _experts(tensor, experts))
    return Source(
        name=str(path),
        model=model,
        layout=architecture.layout(model),
        tensors=join_up_projections(
            {
                part.name: _loaded(architecture, part.name, _stored(path, part, data), model)
                for part in parts
                if part.name != ROPE_FACTORS
            }
        ),
        tokenizer=read_tokenizer(_below(metadata, _TOKENIZER), name=str(path)),
        chat_template=optional_text(
            metadata.get('tokenizer.chat_template'), key=f'{path}: tokenizer.chat_template'
        ),
        credits=credits.read_gguf(metadata),
        sampling=sampling.read_gguf(metadata),
    )


def load_library() -> Any:
    """Imports and returns the `gguf` library.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module('gguf')
    except ImportError as error:
        raise UserError("GGUF files need the gguf library: pip install -e '.[gguf]'") from error


def _below(metadata: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}


def _stored(path: pathlib.Path, tensor: TensorInfo, data: np.ndarray) -> StoredTensor:
    """Returns a lazy tensor of a file.

    Raises:
        UserError: its type cannot be read, or it extends past the end of the file.
    """
    gguf = load_library()
    try:
        kind = gguf.GGMLQuantizationType(tensor.kind)
    except ValueError:
        kind = None
    if kind is None or not _is_readable(kind):
        name = f'type {tensor.kind}' if kind is None else kind.name
        known = ', '.join(k.name for k in gguf.GGMLQuantizationType if _is_readable(k))
        raise UserError(f'{path}: {tensor.name} has the type {name}; only {known} are read')
    block, size = gguf.GGML_QUANT_SIZES[kind]
    num_bytes = math.prod(tensor.shape) // block * size
    if tensor.shape[-1] % block or tensor.offset + num_bytes > len(data):
        raise UserError(
            f'{path} is not a GGUF file, or is truncated ({tensor.name} reaches beyond '
            f'it); fetch it again'
        )
    stored = data[tensor.offset : tensor.offset + num_bytes].reshape(*tensor.shape[:-1], -1)
    return StoredTensor(tensor.shape, functools.partial(_read, stored, kind))


def _experts(tensor: TensorInfo, count: int) -> Iterator[TensorInfo]:
    """Yields the experts of a tensor that holds all of a layer, so that each is read alone."""
    if '_exps.' not in tensor.name or len(tensor.shape) != 3 or tensor.shape[0] != count:
        yield tensor
        return
    block, size = load_library().GGML_QUANT_SIZES[tensor.kind]
    num_bytes = math.prod(tensor.shape[1:]) // block * size
    for expert in range(count):
        offset = tensor.offset + expert * num_bytes
        yield TensorInfo(expert_name(tensor.name, expert), tensor.shape[1:], tensor.kind, offset)


@functools.cache
def _is_readable(kind: Any) -> bool:
    """Returns whether the library can de-quantise a type, by trying it on a block of zeros."""
    gguf = load_library()
    if kind.name in _FLOATS:
        return True
    _, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _read(stored: np.ndarray, kind: Any) -> np.ndarray:
    if kind.name in _FLOATS:
        return stored.view(_FLOATS[kind.name])
    return load_library().quants.dequantize(stored, kind)


def _loaded(
    architecture: Architecture, name: str, tensor: StoredTensor, model: ModelConfig
) -> StoredTensor:
    def read() -> np.ndarray:
        return architecture.load(name, tensor.read(), model)

    return StoredTensor(tensor.shape, read)
