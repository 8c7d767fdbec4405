"""A model of llama.cpp as a description, from which GGUF's metadata and tensors follow.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp's
`src/models`. Matrices are `[outputs, inputs]`. Some models rotate neighbouring rows of queries and
keys; the others rotate halves, as transformers does.
"""

import dataclasses
import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from gpt_jax.config_tree import set_value
from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig, RopeConfig, finalize_model
from gpt_jax.model.position import rope_frequencies
from gpt_jax.weights.described_family import Description
from gpt_jax.weights.gguf_header import as_decimal
from gpt_jax.weights.gguf_latent import split_up_projection
from gpt_jax.weights.gguf_parts import PATTERN
from gpt_jax.weights.layout import unsupported
from gpt_jax.weights.source import ConfigReader

ROPE_FACTORS = 'rope_freqs.weight'  # factors of the wavelengths in Llama 3.1's RoPE
OUTPUT = 'output.weight'  # absent if tied to the embedding table
_INERT = ('rope.scaling.finetuned', 'rope.scaling.original_context_length')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(Description):
    """An architecture of llama.cpp, the one that holds `model_types` of transformers.

    With `factors`, a tensor may hold Llama 3.1's scaling. `present` are the knobs that a tensor's
    presence sets.
    """

    name: str
    model_types: tuple[str, ...]
    factors: bool = False
    present: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def capabilities(self) -> dict[str, Any]:
        """Supported values by key below config.model."""
        return super().capabilities | dict.fromkeys(self.present, (False, True))

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the first setting that llama.cpp lacks; '' if none."""
        if reason := unsupported(model, self.capabilities) or super().obstacle(model):
            return reason
        if model.rope.original_seq_len and not model.rope.yarn and not self.factors:
            return f'config.model.rope.original_seq_len={model.rope.original_seq_len}'
        return ''

    def to_model(
        self,
        metadata: Mapping[str, Any],
        *,
        vocab_size: int,
        names: Collection[str],
        rope_factors: np.ndarray | None,
        name: str,
    ) -> ModelConfig:
        """Returns the architecture, finalized, that a file describes.

        Args:
          metadata: the keys below `ARCHITECTURE.`, without that prefix.
          vocab_size: rows of the embedding table.
          names: the tensors.
          rope_factors: `[K/2]`, the tensor `ROPE_FACTORS`.
          name: the file's name for error messages.

        Raises:
            UserError: a key or a value has no counterpart; the message names it.
        """
        c = ConfigReader(_scalars(metadata, name=name), name=name)
        c.require('vocab_size', vocab_size)
        if str(layers := metadata.get('block_count', '')).isdigit() and int(layers) > len(names):
            raise UserError(
                f'{name} has {len(names)} tensors, its config {layers} layers; it is damaged or of '
                f'another architecture'
            )
        c.require('attention.causal', True)
        c.require('tensor_data_layout', '', 'Meta AI original pth')
        model = self.read(c)
        model.vocab_size = vocab_size
        model.tie_embeddings = OUTPUT not in names
        for knob, tensor in self.present.items():
            set_value(model, knob, tensor in names)
        finalize_model(model)
        if self.fixed.get('tie_embeddings', model.tie_embeddings) != model.tie_embeddings:
            has = 'no' if model.tie_embeddings else 'a'
            raise UserError(
                f"{name} has {has} {OUTPUT}, unlike llama.cpp's {self.name}; it is damaged or of "
                f'another architecture'
            )
        if rope_factors is not None:
            if not self.factors:
                raise UserError(f"{name} has {ROPE_FACTORS}, which llama.cpp's {self.name} lacks")
            _read_rope_factors(model, rope_factors, name=name)
        c.finish(_INERT)
        return model

    def from_model(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the metadata, keys without the prefix `ARCHITECTURE.`."""
        return {'vocab_size': model.vocab_size, **self.write(model)}

    def store(self, name: str, tensor: np.ndarray, model: ModelConfig) -> dict[str, np.ndarray]:
        """Returns a tensor of the layout, float32, as the tensors that a file stores."""
        if model.norm_zero_centered and _is_norm(name):
            return {name: tensor + np.float32(1)}
        return split_up_projection(name, tensor, model)

    def load(self, name: str, tensor: np.ndarray, model: ModelConfig) -> np.ndarray:
        """Inverts `store`, up to the rounding of `1 + scale`, which the model rounds likewise.

        `join_up_projections` joins what `store` has split.
        """
        if model.norm_zero_centered and _is_norm(name):
            return np.asarray(tensor, np.float32) - np.float32(1)
        return tensor


def expert_name(name: str, expert: int) -> str:
    """Returns the name in the layout of an expert within the tensor of that name in a file."""
    stem, _, leaf = name.rpartition('.')
    return f'{stem}.{expert}.{leaf}'


def experts_name(name: str) -> str:
    """Returns the name in a file of the tensor that holds a tensor of the layout."""
    return re.sub(r'(_exps)\.\d+\.', r'\1.', name)


def rope_factors(model: ModelConfig) -> np.ndarray:
    """Computes the tensor `ROPE_FACTORS` of an architecture: float32 `[K/2]`."""
    plain = dataclasses.replace(model, rope=RopeConfig(base=model.rope.base))
    return rope_frequencies(plain) / rope_frequencies(model)


def _is_norm(name: str) -> bool:
    return name.endswith('_norm.weight')


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

    A pattern of layers stays a list.

    Raises:
        UserError: the values of a list differ.
    """
    values = {}
    for key, value in metadata.items():
        if isinstance(value, list) and key != PATTERN:
            if any(a != b for a, b in itertools.pairwise(value)):
                raise UserError(
                    f'{name} has another {key} in each layer ({str(value)[:60]}…), which is not '
                    f'supported'
                )
            value = value[0] if value else None
        values[key] = value
    return values
