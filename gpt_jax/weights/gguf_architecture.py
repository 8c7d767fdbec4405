"""GGUF metadata and tensor names of the architectures that llama.cpp shares with this model.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the names of
tensors come from the `gguf` library. Matrices are `[outputs, inputs]`. llama.cpp's llama rotates
neighbouring rows of queries and keys; its Qwens rotate halves, as transformers does.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt_jax.config_tree import get_value
from gpt_jax.errors import UserError
from gpt_jax.model.attention import GroupedQuery
from gpt_jax.model.config import (
    InitConfig,
    MLPKind,
    ModelConfig,
    NormKind,
    PositionKind,
    QKNorm,
    RopeConfig,
    finalize_model,
)
from gpt_jax.model.position import rope_frequencies
from gpt_jax.weights import gpt2, llama
from gpt_jax.weights.gguf_header import as_decimal
from gpt_jax.weights.layout import TensorLayout
from gpt_jax.weights.source import ConfigReader

GPT2, LLAMA, QWEN2, QWEN3 = ARCHITECTURES = ('gpt2', 'llama', 'qwen2', 'qwen3')
ROPE_FACTORS = 'rope_freqs.weight'  # factors of the wavelengths in Llama 3.1's RoPE
OUTPUT = 'output.weight'  # absent if tied to the embedding table
_INERT = ('rope.scaling.finetuned', 'rope.scaling.original_context_length')


def to_model(
    metadata: Mapping[str, Any],
    *,
    vocab_size: int,
    tie_embeddings: bool,
    rope_factors: np.ndarray | None,
    name: str,
) -> ModelConfig:
    """Returns the architecture, not finalized, that the metadata of a file describes.

    Args:
      metadata: the keys below `ARCHITECTURE.`, without that prefix, and `architecture`.
      vocab_size: rows of the embedding table.
      tie_embeddings: whether the file has no output layer.
      rope_factors: `[K/2]`, the tensor `ROPE_FACTORS`.
      name: the file's name for error messages.

    Raises:
        UserError: a key or a value has no counterpart; the message names it.
    """
    kind = metadata['architecture']
    c = ConfigReader(_scalars(metadata, name=name), name=name)
    c.require('architecture', *ARCHITECTURES)
    c.require('vocab_size', vocab_size)
    c.require('attention.causal', True)
    c.require('expert_count', 0)
    c.require('expert_used_count', 0)
    c.require('use_parallel_residual', False)
    c.require('tensor_data_layout', '', 'Meta AI original pth')
    heads = c.take_int('attention.head_count')
    common = dict(
        vocab_size=vocab_size,
        max_seq_len=c.take_int('context_length'),
        num_layers=c.take_int('block_count'),
        num_heads=heads,
        num_kv_heads=c.take_int('attention.head_count_kv', heads),
        d_model=c.take_int('embedding_length'),
        d_ff=c.take_int('feed_forward_length'),
        tie_embeddings=tie_embeddings,
    )
    if kind == GPT2:
        c.require('attention.head_count_kv', heads)
        epsilon = c.take_float('attention.layer_norm_epsilon', 1e-5)
        model = ModelConfig(**common, norm_epsilon=epsilon, mlp=MLPKind.GELU_TANH)
        if rope_factors is not None:
            raise UserError(f'{name} has {ROPE_FACTORS}, but gpt2 has no rotary positions')
        finalize_model(model)
    else:
        model = _read_llama(c, common, kind=kind)
        finalize_model(model)
        c.require('rope.dimension_count', model.head_dim)
        c.require('attention.value_length', model.head_dim)
        if rope_factors is not None:
            _read_rope_factors(model, rope_factors, name=name)
    c.finish(_INERT)
    return model


def _read_llama(c: ConfigReader, common: Mapping[str, Any], *, kind: str) -> ModelConfig:
    scaling = c.require('rope.scaling.type', 'linear', 'none')  # linear is llama.cpp's default too
    factor = c.take_float('rope.scaling.factor', 0.0)
    return ModelConfig(
        **common,
        head_dim=c.take_int('attention.key_length', 0),
        position=PositionKind.ROPE,
        rope=RopeConfig(
            base=c.take_float('rope.freq_base', 10000.0),
            scaling=factor if scaling == 'linear' and factor else 1.0,
        ),
        norm=NormKind.RMSNORM,
        norm_epsilon=c.take_float('attention.layer_norm_rms_epsilon'),
        mlp=MLPKind.SWIGLU,
        use_bias=False,
        attention=GroupedQuery(
            qkv_bias=kind == QWEN2, qk_norm=QKNorm.HEAD if kind == QWEN3 else QKNorm.NONE
        ),
        init=InitConfig(scale_residual=False),
    )


def from_model(model: ModelConfig, *, architecture: str) -> dict[str, int | float | str]:
    """Returns the metadata of a supported architecture, keys without the prefix `ARCHITECTURE.`."""
    values = {
        'vocab_size': model.vocab_size,
        'context_length': model.max_seq_len,
        'embedding_length': model.d_model,
        'block_count': model.num_layers,
        'feed_forward_length': model.d_ff,
        'attention.head_count': model.num_heads,
    }
    if architecture == GPT2:
        return values | {'attention.layer_norm_epsilon': model.norm_epsilon}
    values |= {
        'attention.head_count_kv': model.num_kv_heads,
        'attention.key_length': model.head_dim,
        'attention.value_length': model.head_dim,
        'attention.layer_norm_rms_epsilon': model.norm_epsilon,
        'rope.dimension_count': model.head_dim,
        'rope.freq_base': float(model.rope.base),
    }
    if model.rope.scaling != 1 and not model.rope.original_seq_len:
        scaling = {'rope.scaling.type': 'linear', 'rope.scaling.factor': float(model.rope.scaling)}
        values |= scaling
    return values


def obstacle(model: ModelConfig, *, architecture: str) -> str:
    """Returns the setting that llama.cpp lacks but transformers' family has; '' if none."""
    mlp = MLPKind.GELU_TANH if architecture == GPT2 else MLPKind.SWIGLU
    if model.mlp.activation != mlp:
        return f'config.model.mlp={model.mlp.activation}'
    for key in ('attention.output_bias', 'attention.inverse_layer_scale', 'mlp.bias', 'rope.yarn'):
        if get_value(model, key):
            return f'config.model.{key}=True'
    if model.layer_kinds:
        return 'config.model.layer_kinds'
    if model.rope.original_seq_len and architecture != LLAMA:
        return f'config.model.rope.original_seq_len={model.rope.original_seq_len}'
    return ''


def layout(model: ModelConfig, *, architecture: str) -> list[TensorLayout]:
    """Returns every tensor that holds parameters."""
    import gguf

    if architecture == GPT2:
        entries = gpt2.layout(model, linear=True)
    else:
        in_pairs = architecture == LLAMA
        entries = llama.layout_in_pairs(model) if in_pairs else llama.LLAMA.layout(model)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], 1)

    def rename(theirs: str) -> str:
        name = names.get_name(theirs.format(layer=0), try_suffixes=('.weight', '.bias'))
        assert name is not None, f'gguf has no name for {theirs}'
        return name.replace('blk.0.', 'blk.{layer}.')

    return [dataclasses.replace(entry, name=rename(entry.name)) for entry in entries]


def rope_factors(model: ModelConfig) -> np.ndarray:
    """Computes the tensor `ROPE_FACTORS` of an architecture: float32 `[K/2]`."""
    plain = dataclasses.replace(model, rope=RopeConfig(base=model.rope.base))
    return rope_frequencies(plain) / rope_frequencies(model)


def _read_rope_factors(model: ModelConfig, factors: np.ndarray, *, name: str) -> None:
    """Recovers Llama 3.1's RoPE settings from the factors, which are all that a file stores.

    Between the short wavelengths and the long ones `1 / factor` is linear in the frequency. A line
    fit gives `original / (high - low)` and `low / (high - low)`. `low` is 1 in every published
    model, and scaling the three together changes nothing.

    Raises:
        UserError: the factors do not have this form.
    """
    frequencies = rope_frequencies(model).astype(np.float64)
    factors = np.asarray(factors, np.float64)
    if factors.shape == frequencies.shape and model.rope.scaling == 1:
        scaling = as_decimal(factors.max())
        between = (factors > 1) & (factors < factors.max())
        if between.sum() >= 2:
            ramp = (1 / factors[between] - 1 / scaling) / (1 - 1 / scaling)
            slope, start = np.polyfit(frequencies[between], ramp, 1)
            if slope > 0 > start:
                span = -1 / start
                model.rope.scaling = scaling
                model.rope.low_freq_factor = 1.0
                model.rope.high_freq_factor = round(1 + span, 3)
                model.rope.original_seq_len = round(2 * np.pi * slope * span)
                found = rope_frequencies(model)
                if np.allclose(found, frequencies / factors, rtol=1e-5, atol=0):
                    return
    raise UserError(
        f'{name} has {ROPE_FACTORS}, which does not scale positions as Llama 3.1 does; weights '
        f'that depend on it cannot be used'
    )


def _scalars(metadata: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Returns the metadata with lists of equal per-layer values replaced by that value.

    Raises:
        UserError: the values of a list differ.
    """
    values = {}
    for key, value in metadata.items():
        if isinstance(value, list):
            if any(a != b for a, b in itertools.pairwise(value)):
                raise UserError(
                    f'{name} has another {key} in each layer ({str(value)[:60]}…), which is not '
                    f'supported'
                )
            value = value[0] if value else None
        values[key] = value
    return values
