"""Groups of parameters that optimizers treat alike, and the matrix axes of each parameter.

Both are declared by the module that creates a parameter (`gpt_jax.parameter`), and never guessed
from the number of dimensions: parameters are stacked over layers (a leading axis N), so a norm
scale [N, D] has two dimensions, and an embedding looks like a hidden matrix. Here parameters are
known by their paths, joined by slashes: `blocks/attention/query/kernel`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax

from gpt_jax.parameter import Parameter, Role

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ParameterGroups:
    """The declarations of a tree of parameters, by path."""

    declared: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, boxed: PyTree) -> Self:
        """Collects the declarations of a boxed tree."""
        declared = {}
        map_with_path(declared.__setitem__, boxed, is_leaf=lambda x: isinstance(x, Parameter))
        return cls(declared)

    def role(self, path: str) -> Role:
        """Returns the role of the parameter at `path`. Raises KeyError if it is not declared."""
        return self.declared[path].role

    def is_stacked(self, path: str) -> bool:
        """Returns whether the parameter has a leading axis of layers."""
        return self.declared[path].is_stacked

    def matrix_axes(self, path: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the (input, output) axes of a matrix, without that of the layers."""
        first = int(self.is_stacked(path))
        outputs_start = first + self.declared[path].inputs
        return tuple(range(first, outputs_start)), tuple(range(outputs_start, ndim))

    def matrix_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a stacked parameter with heads merged, one matrix or vector a layer.

        The shape is [N, inputs, outputs] for hidden matrices and [N, size] for biases and scales.
        """
        if self.role(path) is not Role.HIDDEN:
            return (shape[0], math.prod(shape[1:]))
        inputs, outputs = self.matrix_axes(path, len(shape))
        return (
            shape[0],
            math.prod(shape[axis] for axis in inputs),
            math.prod(shape[axis] for axis in outputs),
        )

    def decay_mask(self, params: PyTree) -> PyTree:
        """Marks parameters with weight decay: every matrix, as in nanoGPT; no biases or scales."""
        return map_with_path(lambda path, _: self.role(path) is not Role.VECTOR, params)


def map_with_path(function: Any, tree: PyTree, *rest: PyTree, is_leaf: Any = None) -> PyTree:
    """Maps like `jax.tree.map`, with the slash-joined path of each leaf as the first argument."""
    return jax.tree.map_with_path(
        lambda keys, *leaves: function(
            jax.tree_util.keystr(keys, simple=True, separator='/'), *leaves
        ),
        tree,
        *rest,
        is_leaf=is_leaf,
    )
