"""The training state: everything that a step reads and writes, so a checkpoint must hold it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


@flax.struct.dataclass
class TrainState:
    """The state between two steps; parameters are in the stored layout."""

    step: Int[Array, '']  # steps taken, skipped ones included
    params: Any  # trained parameters: all of the model's, a part of them, or adapters
    opt_state: Any
    ema: Any  # moving average of `params`, or None
    skipped: Int[Array, '']  # updates skipped: something was not finite, or no token counted
    bad_steps: Int[Array, '']  # non-finite steps in a row, up to this step
    base: Any = None  # parameters that are not trained, or None; see optim/trainable.py


def make_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    base: Any = None,
) -> TrainState:
    """Returns the state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema_decay else None,
        skipped=zero,
        bad_steps=zero,
        base=base,
    )
