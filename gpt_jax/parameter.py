"""Parameters with what their modules declare about them, once, where they are created.

Sharding, the groups of optimizers, matrix axes and adapters derive from these declarations.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
from flax import linen as nn
from flax import struct

PyTree = Any
LAYERS = 'layers'  # the logical axis over which parameters are stacked
EXPERTS = 'experts'  # the logical axis of matrices of which a token uses some


class Role(enum.StrEnum):
    """The kinds of parameters that optimizers treat differently."""

    HIDDEN = 'hidden'  # a matrix inside the blocks that multiplies activations
    EMBEDDING = 'embedding'  # a matrix with a vocabulary or position axis
    VECTOR = 'vector'  # a bias or a norm's scale
    ADAPTER = 'adapter'  # a factor of a low-rank update of a hidden matrix (LoRA)
    BALANCE = 'balance'  # moves by a fixed step against the sign of its gradient


class Growth(NamedTuple):
    """A weight's fan-in and fan-out, divided by those of the base model of μP."""

    inputs: float = 1.0
    outputs: float = 1.0


class Parameter(nn.LogicallyPartitioned):
    """A boxed parameter: flax's box with the names of its logical axes, and its declaration."""

    role: Role = struct.field(default=Role.VECTOR, pytree_node=False)
    inputs: int = struct.field(default=0, pytree_node=False)  # axes that its product sums over
    in_product: bool = struct.field(default=True, pytree_node=False)  # False: only looked up
    active: float = struct.field(default=1.0, pytree_node=False)  # share that a token uses
    step: float = struct.field(default=0.0, pytree_node=False)  # by which BALANCE moves
    std: float = struct.field(default=0.0, pytree_node=False)  # of normal initial values; 0: others
    growth: Growth = struct.field(default=Growth(), pytree_node=False)

    @property
    def is_stacked(self) -> bool:
        """True if the first axis is that of the layers."""
        return bool(self.names) and self.names[0] == LAYERS

    @property
    def batch_axes(self) -> int:
        """The number of leading axes of which each entry is a matrix of its own."""
        return next(
            i for i, name in enumerate([*self.names, None]) if name not in (LAYERS, EXPERTS)
        )

    @property
    def fans(self) -> tuple[int, int]:
        """The fan-in and the fan-out; a table that is looked up has no inputs."""
        first, shape = self.batch_axes, self.value.shape
        split = first + self.inputs
        return math.prod(shape[first:split]), math.prod(shape[split:])


def declare(
    init: float | Callable[..., Any],
    axes: tuple[str | None, ...],
    *,
    role: Role,
    inputs: int = 0,
    in_product: bool = True,
    active: float = 1.0,
    step: float = 0.0,
) -> Callable[..., Parameter]:
    """Returns an initializer for `nn.Module.param` that makes a declared parameter.

    Args:
      init: the standard deviation of normal initial values, or an initializer.
      axes: the logical name of each dimension.
      role: the group for optimizers.
      inputs: number of leading dimensions that the product with the parameter sums over.
      in_product: False for a table that is only looked up, which costs no FLOPs.
      active: the share of the parameter that a token uses, such as 2 of 8 experts.
      step: by which a parameter of role BALANCE moves per training step.
    """
    std = 0.0 if callable(init) else init
    initialize = init if callable(init) else nn.initializers.normal(std)

    @functools.wraps(initialize)
    def make(*args: Any, **kwargs: Any) -> Parameter:
        return Parameter(
            initialize(*args, **kwargs),
            axes,
            role=role,
            inputs=inputs,
            in_product=in_product,
            active=active,
            step=step,
            std=std,
        )

    return make


@dataclasses.dataclass(frozen=True)
class ParameterGroups:
    """The declarations of a tree of parameters, by path, joined by slashes.

    Roles and axes are never guessed from the number of dimensions: parameters are stacked over
    layers (a leading axis N), so a norm scale [N, D] has two dimensions, and an embedding looks
    like a hidden matrix.
    """

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
        """Returns the (input, output) axes of a matrix, without those of layers and experts."""
        first = self.declared[path].batch_axes
        outputs_start = first + self.declared[path].inputs
        return tuple(range(first, outputs_start)), tuple(range(outputs_start, ndim))

    def matrix_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a stacked parameter as a batch of matrices or vectors.

        Heads are merged. The shape is [N, inputs, outputs] for hidden matrices, [N * E, inputs,
        outputs] for those of experts, and [N, size] for biases and scales.
        """
        if self.role(path) is not Role.HIDDEN:
            return (shape[0], math.prod(shape[1:]))
        inputs, outputs = self.matrix_axes(path, len(shape))
        return (
            math.prod(shape[: self.declared[path].batch_axes]),
            math.prod(shape[axis] for axis in inputs),
            math.prod(shape[axis] for axis in outputs),
        )

    def decay_mask(self, params: PyTree) -> PyTree:
        """Marks parameters with weight decay: every matrix, as in nanoGPT; no biases or scales."""
        without = (Role.VECTOR, Role.BALANCE)
        return map_with_path(lambda path, _: self.role(path) not in without, params)


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
