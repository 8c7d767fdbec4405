"""Latent attention in GGUF files: keys of the metadata, and the two forms of its tensors.

llama.cpp maps queries to the space of latents, and so needs the up-projections of keys and values
apart, that of keys transposed. Older files hold both in one tensor, as transformers does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.position import yarn_growth
from gpt_jax.weights.config_parts import ANY, Part
from gpt_jax.weights.gguf_parts import Rope
from gpt_jax.weights.source import ConfigReader, StoredTensor

_JOINED, _KEYS, _VALUES = (f'.attn_{name}_b.weight' for name in ('kv', 'k', 'v'))
_GROUPS = 'attention.head_count_kv'
_WIDTHS = ('attention.key_length', 'attention.value_length')
_WIDTHS_OF_HEADS = tuple(f'{name}_mla' for name in _WIDTHS)
_LOG_MULTIPLIER = 'rope.scaling.yarn_log_multiplier'
_ATTENTION_FACTOR = 'rope.scaling.attn_factor'


class LatentHeads(Part):
    """The widths of heads, after the rank of keys and values and the rotary part."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knobs.

        Raises:
            UserError: only the rotary part remains of a head.
        """
        rank, rotated = model.attention.kv_rank, model.attention.rope_dim
        key, value = (c.take_int(name, 0) for name in _WIDTHS_OF_HEADS)
        if key and value:
            c.require(_GROUPS, 1)
            for name, width in zip(_WIDTHS, (rank + rotated, rank), strict=True):
                c.require(name, width)
        else:
            c.require(_GROUPS, model.num_heads)
            key, value = (c.take_int(name) for name in _WIDTHS)
        if key <= rotated:
            raise UserError(
                f'{c.name} has keys of {key} and rope.dimension_count={rotated}, which must be '
                f'less; it is damaged'
            )
        model.head_dim, model.attention.value_dim = key - rotated, value

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys of the form with separate up-projections."""
        rank, rotated = model.attention.kv_rank, model.attention.rope_dim
        widths = (model.head_dim + rotated, model.attention.value_width(model))
        return {
            _GROUPS: 1,
            **dict(zip(_WIDTHS, (rank + rotated, rank), strict=True)),
            **dict(zip(_WIDTHS_OF_HEADS, widths, strict=True)),
        }

    def capabilities(self) -> dict[str, Any]:
        """Returns any width of values."""
        return {'attention.value_dim': ANY}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the latent queries in the models that llama.cpp knows to have none."""
        size = (model.num_layers, model.vocab_size)
        lite = size[0] in (26, 27) or size == (48, 128256)
        rank = model.attention.q_rank
        return f'config.model.attention.q_rank={rank} with {size[0]} layers' if lite * rank else ''


class LatentRope(Rope):
    """The rotary settings of a part of each head.

    Let g be a tenth of the logarithm of the scaling. llama.cpp rotates by the factor A, and
    multiplies scores by (A (1 + m g))². Without m, A has another factor 1 + g.
    """

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knobs.

        Raises:
            UserError: llama.cpp does with the scaling what this model does not.
        """
        super().read(c, model)
        if reason := self.obstacle(model):
            raise UserError(f'{c.name} is read as {reason}, which is not supported')

    def obstacle(self, model: ModelConfig) -> str:
        """Returns a scaling that llama.cpp applies otherwise, or less to the scores."""
        rope, attention = model.rope, model.attention
        if not rope.yarn:
            linear = f'config.model.rope.scaling={rope.scaling}'
            return super().obstacle(model) or (linear if rope.scaling != 1 else '')
        if rope.scaling <= 1:
            return f'config.model.rope.yarn with scaling={rope.scaling}'
        if _multiplier(model) < 0:
            return f'config.model.attention.yarn_mscale={attention.yarn_mscale}'
        return super().obstacle(model)

    def capabilities(self) -> dict[str, Any]:
        """Returns the values of the rotary width too."""
        return super().capabilities() | dict.fromkeys(
            ('attention.rope_dim', 'attention.yarn_mscale'), ANY
        )

    def _read_width(self, c: ConfigReader, model: ModelConfig) -> None:
        model.attention.rope_dim = c.take_int('rope.dimension_count')

    def _write_width(self, model: ModelConfig) -> int:
        return model.attention.rope_dim

    def _read_factors(self, c: ConfigReader, model: ModelConfig) -> None:
        rope, growth = model.rope, yarn_growth(model.rope)
        multiplier = round(c.take_float(_LOG_MULTIPLIER, 0.0) / 0.1, 6)
        factor = c.take_float(_ATTENTION_FACTOR, 1.0)
        factor *= 1.0 if multiplier else 1 + growth
        rope.attention_factor = factor
        if growth:
            scale = factor * (1 + multiplier * growth)
            model.attention.yarn_mscale = round((scale - 1) / growth, 5)

    def _write_factors(self, model: ModelConfig) -> dict[str, Any]:
        factor, multiplier = model.rope.attention_factor, _multiplier(model)
        factor /= 1.0 if multiplier else 1 + yarn_growth(model.rope)
        return {_ATTENTION_FACTOR: float(factor), _LOG_MULTIPLIER: 0.1 * multiplier}


def _multiplier(model: ModelConfig) -> float:
    """Returns the m of `LatentRope`."""
    growth = yarn_growth(model.rope)
    scale = (1 + model.attention.yarn_mscale * growth) / model.rope.attention_factor
    return round((scale - 1) / growth, 6) + 0.0


def split_up_projection(name: str, tensor: np.ndarray, model: ModelConfig) -> dict[str, np.ndarray]:
    """Returns the tensors of a file that hold one of the layout, which may be of other modules."""
    if not name.endswith(_JOINED):
        return {name: tensor}
    heads = tensor.reshape(model.num_heads, -1, tensor.shape[-1])
    layer, width = name.removesuffix(_JOINED), model.head_dim
    return {
        f'{layer}{_KEYS}': heads[:, :width].transpose(0, 2, 1),
        f'{layer}{_VALUES}': heads[:, width:],
    }


def join_up_projections(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Inverts `split_up_projection` for all tensors of a file; those that do not fit remain."""
    joined = dict(tensors)
    for name, keys in tensors.items():
        layer = name.removesuffix(_KEYS)
        values = tensors.get(f'{layer}{_VALUES}')
        if layer == name or values is None or len(keys.shape) != 3 or len(values.shape) != 3:
            continue
        if keys.shape[:2] == (values.shape[0], values.shape[2]):
            joined[f'{layer}{_JOINED}'] = _join(keys, values)
            del joined[name], joined[f'{layer}{_VALUES}']
    return joined


def _join(keys: StoredTensor, values: StoredTensor) -> StoredTensor:
    heads, rank, width = keys.shape

    def read() -> np.ndarray:
        both = np.concatenate([keys.read().transpose(0, 2, 1), values.read()], 1)
        return both.reshape(-1, rank)

    return StoredTensor((heads * (width + values.shape[1]), rank), read)
