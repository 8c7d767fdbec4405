"""Parameters with what their modules declare about them, once, where they are created.

Sharding, the groups of optimizers, matrix axes and adapters derive from these declarations.
"""

import enum
import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax import struct

LAYERS = 'layers'  # the logical axis over which parameters are stacked


class Role(enum.StrEnum):
    """The kinds of parameters that optimizers treat differently."""

    HIDDEN = 'hidden'  # a matrix inside the blocks that multiplies activations
    EMBEDDING = 'embedding'  # a matrix with a vocabulary or position axis
    VECTOR = 'vector'  # a bias or a norm's scale
    ADAPTER = 'adapter'  # a factor of a low-rank update of a hidden matrix (LoRA)


class Parameter(nn.LogicallyPartitioned):
    """A boxed parameter: flax's box with the names of its logical axes, and its declaration."""

    role: Role = struct.field(default=Role.VECTOR, pytree_node=False)
    inputs: int = struct.field(default=0, pytree_node=False)  # axes that its product sums over
    in_product: bool = struct.field(default=True, pytree_node=False)  # False: only looked up

    @property
    def is_stacked(self) -> bool:
        """True if the first axis is that of the layers."""
        return bool(self.names) and self.names[0] == LAYERS


def declare(
    init: Callable[..., Any],
    axes: tuple[str, ...],
    *,
    role: Role,
    inputs: int = 0,
    in_product: bool = True,
) -> Callable[..., Parameter]:
    """Wraps an initializer for `nn.Module.param`, so that it returns a declared parameter.

    Args:
      init: makes the array.
      axes: the logical name of each dimension.
      role: the group for optimizers.
      inputs: number of leading dimensions that the product with the parameter sums over.
      in_product: False for a table that is only looked up, which costs no FLOPs.
    """

    @functools.wraps(init)
    def make(*args: Any, **kwargs: Any) -> Parameter:
        return Parameter(
            init(*args, **kwargs), axes, role=role, inputs=inputs, in_product=in_product
        )

    return make
