"""Groups of parameters that optimizers treat alike, and the matrix axes of each parameter.

Groups are assigned by path, never by the number of dimensions. Parameters are stacked over layers
(a leading axis N), so a norm scale [N, D] has two dimensions, and an embedding looks like a
hidden matrix. Paths are joined by slashes: `blocks/attention/query/kernel`.
"""

import enum
import math
from typing import Any

import jax

PyTree = Any


class Group(enum.StrEnum):
    """The kinds of parameters that optimizers treat differently."""

    HIDDEN = 'hidden'  # the matrices inside the blocks, stacked over layers
    EMBEDDING = 'embedding'  # matrices with a vocabulary or position axis
    VECTOR = 'vector'  # biases and norm scales
    ADAPTER = 'adapter'  # the two factors of a low-rank update of a hidden matrix (LoRA)


# Last component of a path -> group.
GROUPS = {
    'kernel': Group.HIDDEN,
    'table': Group.EMBEDDING,
    'bias': Group.VECTOR,
    'scale': Group.VECTOR,
    'lora_a': Group.ADAPTER,
    'lora_b': Group.ADAPTER,
}

# Hidden kernel -> number of input axes after the layer axis; the remaining axes are the output.
# query [N, D, H, K] multiplies D; the attention output [N, H, K, D] multiplies (H, K).
INPUT_AXES = {
    'attention/query': 1,
    'attention/key': 1,
    'attention/value': 1,
    'attention/output': 2,
    'mlp/up': 1,
    'mlp/gate': 1,
    'mlp/down': 1,
}


def group_of(path: str) -> Group:
    """Returns the group of the parameter at `path`.

    Raises:
        ValueError: the path ends in a name that `GROUPS` does not list, or is a kernel outside
            the blocks.
    """
    group = GROUPS.get(path.rpartition('/')[2])
    if group is None or (group is Group.HIDDEN and not path.startswith('blocks/')):
        raise ValueError(f'parameter {path!r} belongs to no group; list it in param_groups.GROUPS')
    return group


def matrix_axes(path: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the (input, output) axes of a stacked hidden kernel, without the layer axis 0.

    Raises:
        ValueError: `INPUT_AXES` does not list the kernel.
    """
    layer = path.removeprefix('blocks/').removesuffix('/kernel')
    if layer not in INPUT_AXES:
        raise ValueError(f'hidden kernel {path!r}: list its axes in param_groups.INPUT_AXES')
    outputs_start = 1 + INPUT_AXES[layer]
    return tuple(range(1, outputs_start)), tuple(range(outputs_start, ndim))


def matrix_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a stacked parameter with heads merged: one matrix or vector per layer.

    The shape is [N, inputs, outputs] for hidden kernels and [N, size] for biases and scales.
    """
    if group_of(path) is not Group.HIDDEN:
        return (shape[0], math.prod(shape[1:]))
    inputs, outputs = matrix_axes(path, len(shape))
    return (
        shape[0],
        math.prod(shape[axis] for axis in inputs),
        math.prod(shape[axis] for axis in outputs),
    )


def map_with_path(function, tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps like `jax.tree.map`, with the slash-joined path of each leaf as the first argument."""
    return jax.tree.map_with_path(
        lambda keys, *leaves: function(
            jax.tree_util.keystr(keys, simple=True, separator='/'), *leaves
        ),
        tree,
        *rest,
    )


def decay_mask(params: PyTree) -> PyTree:
    """Marks parameters with weight decay: every matrix, as in nanoGPT; no biases or scales."""
    return map_with_path(lambda path, _: group_of(path) is not Group.VECTOR, params)
