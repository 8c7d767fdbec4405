"""The learned linear map and the lookup in a learned table."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from gpt_jax.kernels.matmul_cpu import matmul
from gpt_jax.kernels.matmul_int8 import Int8Matrix, multiply
from gpt_jax.model.options import CommonConfig, MatmulPrecision
from gpt_jax.model.remat import PRODUCT
from gpt_jax.parameter import Role, declare

OPERANDS = {MatmulPrecision.DEFAULT: None, MatmulPrecision.BFLOAT16: jnp.bfloat16}


class Linear(nn.Module):
    """`x @ kernel + bias` between groups of dimensions, run as one two-dimensional product.

    The kernel is stored with separate dimensions (`[D, H, K]`), so that whole heads can be sharded
    over a mesh axis. They are merged for the product (`[D, H*K]`), which suits matrix units.
    """

    config: CommonConfig
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical names of the kernel's dimensions, inputs then outputs
    use_bias: bool | None = None  # None: the config's
    residual: bool = False  # ends a residual branch: GPT-2's scaled initialisation

    def setup(self):
        c = self.config
        std = c.init.std
        if self.residual and c.init.scale_residual:
            std /= math.sqrt(2 * c.num_layers)
        split, dtype = len(self.inputs), jnp.dtype(c.precision.params)
        init = declare(std, self.axes, role=Role.HIDDEN, inputs=split)
        self.kernel = matrix(self, 'kernel', init, self.inputs + self.outputs, dtype)
        self.bias = None
        if c.use_bias if self.use_bias is None else self.use_bias:
            init = declare(nn.initializers.zeros_init(), self.axes[split:], role=Role.VECTOR)
            self.bias = self.param('bias', init, self.outputs, dtype)

    def __call__(self, x: Float[Array, '... I']) -> Float[Array, '... O']:
        """Maps `[..., prod(inputs)]` to `[..., prod(outputs)]`."""
        if isinstance(self.kernel, Int8Matrix):
            y = multiply(x, self.kernel)
        else:
            kernel_IO = self.kernel.reshape(math.prod(self.inputs), -1).astype(x.dtype)
            y = matmul(x, kernel_IO, OPERANDS[self.config.precision.matmul])
        if self.bias is not None:
            y = y + jnp.broadcast_to(self.bias.reshape(-1).astype(x.dtype), y.shape)
        return checkpoint_name(y, PRODUCT)


def matrix(module: nn.Module, name: str, *declaration: Any) -> jax.Array | Int8Matrix:
    """Declares a parameter as `module.param` does; a decoder may have put an `Int8Matrix` there."""
    given = module.get_variable('params', name)
    return given if isinstance(given, Int8Matrix) else module.param(name, *declaration)


def look_up(
    table_ND: Float[Array, 'N D'] | Int8Matrix, ids: Int[Array, '...'], axis: str
) -> Float[Array, '... D']:
    """Returns the rows `ids` of a table whose first dimension has the logical name `axis`."""
    if isinstance(table_ND, Int8Matrix):
        return table_ND.rows(ids)
    # Rows may be sharded along D: this gathers the table, not the activations.
    table_ND = nn.with_logical_constraint(table_ND, (axis, 'activation'))
    return jnp.take(table_ND, ids, axis=0)
