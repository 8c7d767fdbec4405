"""The nonlinearities of MLPs."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpt_jax.model.options import MLPKind


class Activation(NamedTuple):
    """The nonlinearity of an MLP; `gated` if a third product multiplies it."""

    function: Callable[[jax.Array], jax.Array]
    gated: bool

    def __call__(self, up: Float[Array, '...'], gate: Float[Array, '...'] | None = None):
        """Returns `function(up)`, or `function(gate) * up` when gated."""
        return self.function(gate) * up if self.gated else self.function(up)


def squared_relu(x: Float[Array, '...']) -> Float[Array, '...']:
    """Computes `max(x, 0)²`; So et al. 2021 (Primer), https://arxiv.org/abs/2109.08668."""
    return jax.nn.relu(x) ** 2


def exact_gelu(x: Float[Array, '...']) -> Float[Array, '...']:
    """Computes `x * Phi(x)` by `erf`, like PyTorch; XLA's `erfc` costs twice as much."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


# GELU: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415 (GPT-2 uses its tanh form).
# SwiGLU, GEGLU: Shazeer 2020, https://arxiv.org/abs/2002.05202.
ACTIVATIONS = {
    MLPKind.GELU: Activation(exact_gelu, gated=False),
    MLPKind.GELU_TANH: Activation(functools.partial(jax.nn.gelu, approximate=True), gated=False),
    MLPKind.RELU: Activation(jax.nn.relu, gated=False),
    MLPKind.RELU2: Activation(squared_relu, gated=False),
    MLPKind.SWIGLU: Activation(jax.nn.silu, gated=True),
    MLPKind.GEGLU: Activation(functools.partial(jax.nn.gelu, approximate=True), gated=True),
}


def activate(kind: MLPKind, *inputs: Float[Array, '... F']) -> Float[Array, '... F']:
    """Computes the activation of `(up,)`, or of `(up, gate)` when gated; in float32."""
    function = ACTIVATIONS[kind]
    return function(*inputs) if inputs[0].dtype == jnp.float32 else in_float32(function, *inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_float32(function: Callable[..., jax.Array], *inputs: jax.Array) -> jax.Array:
    """Computes an elementwise function in float32, rounded once to the inputs' dtype.

    Only the inputs are kept for the backward pass. It recomputes the rest, which costs less than
    reading it from memory.
    """
    return function(*(x.astype(jnp.float32) for x in inputs)).astype(inputs[0].dtype)


def _forward(function, *inputs):
    return in_float32(function, *inputs), inputs


def _backward(function, inputs, dy):
    _, vjp = jax.vjp(function, *(x.astype(jnp.float32) for x in inputs))
    return tuple(dx.astype(dy.dtype) for dx in vjp(dy.astype(jnp.float32)))


in_float32.defvjp(_forward, _backward)
