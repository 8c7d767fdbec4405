"""Mappings from another format's tensors to this model's parameters: names, joins, transposes.

A tensor that the format stores per layer has `{layer}` in its name, and one that it stores per
expert `{expert}`. Our parameters are stacked over layers and then over experts, and keep the head
dimensions separate (`[N, D, H, K]`); theirs are matrices. Reshapes and transposes are views, so a
device that stores a shard reads only that part of the file.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.config_tree import get_value, member_name
from gpt_jax.errors import UserError
from gpt_jax.fingerprint import named_leaves
from gpt_jax.model.config import ModelConfig, PositionKind
from gpt_jax.parameter import ParameterGroups, Role
from gpt_jax.weights.rope_pairs import from_pairs, to_pairs

TABLES = ('embedding/table', 'output/table')  # ours have padding rows


class AnyValue:
    """A collection that contains every value."""

    def __contains__(self, value: Any) -> bool:
        return True


ANY = AnyValue()
# Knobs that every format stores, or that change no logit.
_FREE = (
    'vocab_size',
    'max_seq_len',
    'num_layers',
    'num_heads',
    'num_kv_heads',
    'd_model',
    'd_ff',
    'head_dim',
    'base',
    'norm_epsilon',
    'tie_embeddings',
    'rope.base',
    'rope.scaling',
    'rope.original_seq_len',
    'rope.low_freq_factor',
    'rope.high_freq_factor',
    'rope.beta_fast',
    'rope.beta_slow',
    'rope.yarn_truncate',
    'dropouts',
    'init',
    'precision',
    'execution',
)


@dataclasses.dataclass(frozen=True)
class TensorLayout:
    """A tensor of the format and the parameters that it holds."""

    name: str  # 'model.layers.{layer}.mlp.up_proj.weight'
    paths: tuple[str, ...]  # our parameters; several are concatenated along their outputs
    transposed: bool = False  # [outputs, inputs], as torch's Linear has it
    groups: int = 1  # parts into which outputs are cut before they are joined (GPT-NeoX: heads)
    pairs: int = 0  # last outputs of each group, of which the format rotates neighbouring pairs
    layers: Sequence[int] = ()  # of {layer}: those over which ours are stacked; (): all
    experts: int = 0  # of a name with {expert}: their number

    @property
    def axes(self) -> int:
        """The number of leading axes of our parameters that index tensors of the format."""
        return ('{layer}' in self.name) + ('{expert}' in self.name)

    def sizes(self, num_layers: int) -> tuple[int, ...]:
        """Returns the sizes of these axes."""
        layers = [len(self.layers) or num_layers] if '{layer}' in self.name else []
        return (*layers, *([self.experts] if '{expert}' in self.name else []))

    def names(self, num_layers: int) -> dict[tuple[int, ...], str]:
        """Returns the tensors' names by their indices along these axes."""
        return {
            index: self.name_at(index)
            for index in itertools.product(*map(range, self.sizes(num_layers)))
        }

    def name_at(self, index: tuple[int, ...]) -> str:
        """Returns the name of one tensor by its indices along these axes."""
        if '{layer}' not in self.name:
            return self.name.format(expert=index[0]) if index else self.name
        layer = self.layers[index[0]] if self.layers else index[0]
        return self.name.format(layer=layer, expert=index[-1])

    def shape(
        self, shapes: Mapping[str, Sequence[int]], groups: ParameterGroups
    ) -> tuple[int, ...]:
        """Returns the shape of the format's tensor from those of our parameters without `axes`."""
        matrices = [_matrix_shape(path, shapes[path], groups) for path in self.paths]
        outputs = sum(matrix[-1] for matrix in matrices)
        shape = (*matrices[0][:-1], outputs)
        return shape[::-1] if self.transposed else shape

    def split(
        self,
        tensor: np.ndarray,
        shapes: Mapping[str, Sequence[int]],
        groups: ParameterGroups,
    ) -> dict[str, np.ndarray]:
        """Returns the format's tensor as our parameters without `axes`; views, but for `pairs`."""
        matrix = tensor.T if self.transposed else tensor
        matrix = matrix.reshape(*matrix.shape[:-1], self.groups, -1)
        matrix = from_pairs(matrix, self.pairs) if self.pairs else matrix
        parts, start = {}, 0
        for path in self.paths:
            outputs = _matrix_shape(path, shapes[path], groups)[-1] // self.groups
            parts[path] = matrix[..., start : start + outputs].reshape(shapes[path])
            start += outputs
        return parts

    def join(self, parts: Mapping[str, np.ndarray], groups: ParameterGroups) -> np.ndarray:
        """Inverts `split`; returns a contiguous array."""
        matrices = []
        for path in self.paths:
            shape = _matrix_shape(path, parts[path].shape, groups)
            matrices.append(parts[path].reshape(*shape[:-1], self.groups, -1))
        matrix = matrices[0] if len(matrices) == 1 else np.concatenate(matrices, -1)
        matrix = to_pairs(matrix, self.pairs) if self.pairs else matrix
        matrix = matrix.reshape(*matrix.shape[:-2], -1)
        return np.ascontiguousarray(matrix.T if self.transposed else matrix)


def unsupported(model: ModelConfig, capabilities: Mapping[str, Any]) -> str:
    """Returns the first setting of a model that is not among the supported ones; '' if none.

    A knob that is not listed must have its default.

    Args:
      model: the architecture.
      capabilities: supported values by key below config.model. A class supports the members of a
        union that are of it; keys below the union come after it.
    """
    for key, allowed in capabilities.items():
        value = get_value(model, key)
        if dataclasses.is_dataclass(value):
            if not isinstance(value, tuple(allowed)):
                return f'config.model.{key}={member_name(value)}'
        elif value not in allowed:
            union, _, name = key.partition('.')
            shorthand = getattr(getattr(model, union), 'shorthand', None)
            return f'config.model.{union if name == shorthand else key}={value}'
    known = {*capabilities, *_FREE, *([] if model.position == PositionKind.ROPE else ['rope'])}
    return _changed(model, ModelConfig(), known, '')


def _changed(config: Any, default: Any, known: Collection[str], prefix: str) -> str:
    """Returns the first knob, not `known`, that differs from its default; '' if none."""
    for field in dataclasses.fields(config):
        key = f'{prefix}{field.name}'
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value) and key not in _FREE:
            usual = usual if isinstance(value, type(usual)) else type(value)()
            if (key != 'rope' or key not in known) and (
                found := _changed(value, usual, known, f'{key}.')
            ):
                return found
        elif key not in known and value != usual:
            return f'config.model.{key}={value}'
    return ''


def check_complete(layout: Sequence[TensorLayout], params: Any, *, format: str) -> None:
    """Rejects an export that would leave out or repeat a parameter.

    Raises:
        UserError: a parameter is not stored exactly once; names it and the format.
    """
    stored = Counter(path for entry in layout for path in entry.paths)
    wrong = sorted(path for path in named_leaves(params) if stored[path] != 1)
    if wrong:
        raise UserError(
            f'{format} has no place for the parameter {wrong[0]} of this model; '
            f'--format safetensors takes any'
        )


def _matrix_shape(path: str, shape: Sequence[int], groups: ParameterGroups) -> tuple[int, ...]:
    """Returns `[inputs, outputs]` of a hidden matrix; tables keep their shape, vectors are flat."""
    role, inputs = groups.role(path), groups.declared[path].inputs
    if role is Role.EMBEDDING:
        return tuple(shape)
    if role is Role.HIDDEN:
        return math.prod(shape[:inputs]), math.prod(shape[inputs:])
    return (math.prod(shape),)
