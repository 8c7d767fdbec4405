"""Rounding of trained weights to narrower types, for export and for decoding.

int8 is symmetric, with one scale for each output of a matrix and each row of a table of tokens.
The scale multiplies the product of the integers with the activations, not the weights. Vectors,
learned positions, experts and their routers keep their type, and so does the up-projection of
latent attention, of which decoding uses parts.
"""

import enum
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.kernels.matmul_int8 import LARGEST, Int8Matrix
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.parameter import EXPERTS, Parameter, Role, map_with_path

_FLOAT = ('router/kernel', 'kv_up/kernel')  # ends of the paths of matrices that stay float


class RoundedType(enum.StrEnum):
    """The types that weights are rounded to."""

    FLOAT32 = 'float32'
    BFLOAT16 = 'bfloat16'
    FLOAT16 = 'float16'
    INT8 = 'int8'


class Quantized(NamedTuple):
    """A matrix as `values * scale`."""

    values: jax.Array  # int8
    scale: jax.Array  # float32; the axes that the product sums over have length 1


def quantize(matrix: Any, axes: tuple[int, ...]) -> Quantized:
    """Rounds a matrix to int8, with a scale for each index of the axes that are not summed over.

    Args:
      matrix: an array of any floating type.
      axes: the axes that the product with the matrix sums over.
    """
    matrix = jnp.asarray(matrix, jnp.float32)
    scale = jnp.max(jnp.abs(matrix), axes, keepdims=True) / LARGEST
    values = jnp.round(matrix / jnp.where(scale == 0, 1, scale))
    return Quantized(values.astype(jnp.int8), scale)


def has_int8_form(path: str, parameter: Parameter) -> bool:
    """Returns whether `quantize` is for this parameter: a hidden matrix or a table of tokens."""
    is_matrix = parameter.role is Role.HIDDEN or 'vocab' in parameter.names
    return is_matrix and EXPERTS not in parameter.names and not path.endswith(_FLOAT)


def to_int8_matrix(matrix: jax.Array, *, inputs: int) -> Int8Matrix:
    """Rounds a kernel, whose first `inputs` axes are summed over, or with 0 a table of rows."""
    values, scale = quantize(matrix, tuple(range(inputs)) or (1,))
    size = math.prod(matrix.shape[:inputs])
    values_OI = values.reshape(size, -1).T if inputs else values
    return Int8Matrix(values_OI, scale.reshape(-1))


def round_weights(params: Any, model: ModelConfig, dtype: str) -> Any:
    """Returns the parameters (stored layout) with the values that remain of them in a type.

    Their own dtype does not change: `Generator` on them writes the text of the rounded weights.
    """
    groups = parameter_groups(model)

    def round_one(path: str, leaf: jax.Array) -> jax.Array:
        if dtype != RoundedType.INT8:
            return leaf.astype(jnp.dtype(str(dtype))).astype(leaf.dtype)
        parameter = groups.declared[path]
        if not has_int8_form(path, parameter):
            return leaf
        inputs, _ = groups.matrix_axes(path, leaf.ndim)
        values, scale = quantize(leaf, inputs or (leaf.ndim - 1,))
        return (values * scale).astype(leaf.dtype)

    return map_with_path(round_one, params)
