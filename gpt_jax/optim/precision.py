"""Optimizer arithmetic in float32, whatever the parameters are stored in."""

import jax.numpy as jnp
import optax


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps an optimizer so that moments, gradients and updates are float32.

    `optax.apply_updates` rounds the sum of parameter and update to the parameter's dtype.
    Has no effect for float32 parameters and gradients.
    """

    def init(params):
        return optimizer.init(optax.tree.cast(params, jnp.float32))

    def update(gradients, state, params):
        return optimizer.update(
            optax.tree.cast(gradients, jnp.float32), state, optax.tree.cast(params, jnp.float32)
        )

    return optax.GradientTransformation(init, update)
