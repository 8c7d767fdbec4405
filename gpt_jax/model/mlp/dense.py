"""The MLP of GPT: two products around a nonlinearity, three if it is gated."""

import dataclasses
import functools
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax.model.linear import Linear
from gpt_jax.model.mlp.activation import ACTIVATIONS, activate
from gpt_jax.model.mlp.base import BaseMLP
from gpt_jax.model.options import CommonConfig, Kernels, MLPKind
from gpt_jax.model.taps import Tapped


@dataclasses.dataclass(slots=True, kw_only=True)
class Dense(BaseMLP):
    """One MLP for all tokens."""

    shorthand: ClassVar[str] = 'activation'  # --config.model.mlp=swiglu

    activation: MLPKind = MLPKind.GELU_TANH
    bias: bool = False  # biases of the products even without use_bias

    def make(self, config: CommonConfig, *, kernels: Kernels, name: str) -> nn.Module:
        """Returns the module."""
        bias = config.use_bias or self.bias
        return DenseMLP(config, self.activation, config.d_ff, use_bias=bias, name=name)

    def width(self, config: CommonConfig) -> int:
        """Returns d_ff."""
        return config.d_ff

    def describe(self, config: CommonConfig) -> str:
        """Returns the width."""
        return f'd_ff {config.d_ff}'

    def last_weights(self, config: CommonConfig) -> int:
        """Returns the weights of the down-projection."""
        return config.d_ff * config.d_model


class DenseMLP(Tapped):
    """`down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))` when gated."""

    config: CommonConfig
    activation: MLPKind
    width: int
    use_bias: bool | None = None  # None: the config's

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        """Maps `[..., D]` to `[..., F]` and back to `[..., D]`."""
        c = self.config
        linear = functools.partial(Linear, c, use_bias=self.use_bias)
        D, F = (c.d_model,), (self.width,)
        widen = functools.partial(linear, inputs=D, outputs=F, axes=('embed', 'mlp'))
        inputs = [self.tap('up', widen(name='up')(x), 'BLF')]
        if ACTIVATIONS[self.activation].gated:
            inputs.append(self.tap('gate', widen(name='gate')(x), 'BLF'))
        inputs[-1] = self.tap('pre_activation', inputs[-1], 'BLF')  # the gate, if there is one
        hidden = self.tap('hidden', activate(self.activation, *inputs), 'BLF')
        down = linear(inputs=F, outputs=D, axes=('mlp', 'embed'), residual=True, name='down')
        return down(hidden)
