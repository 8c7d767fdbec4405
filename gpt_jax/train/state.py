"""The training state: everything that a step reads and writes, so a checkpoint must hold it."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import init_params
from gpt_jax.optim.trainable import Trainable


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


def begin_state(
    params: Any,
    key: Key[Array, ''],
    *,
    optimizer: optax.GradientTransformation,
    trainable: Trainable,
    ema_decay: float,
) -> TrainState:
    """Returns the state before the first step, from the model's parameters (stored layout).

    The key draws the adapters, if `trainable` has some.
    """
    trained, base = trainable.split(params, key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=trained,
        opt_state=optimizer.init(trained),
        ema=jax.tree.map(jnp.copy, trained) if ema_decay else None,
        skipped=zero,
        bad_steps=zero,
        base=base,
    )


def init_state(key: Key[Array, ''], *, model: ModelConfig, **parts: Any) -> TrainState:
    """Returns the state before the first step with random weights; `parts` as in `begin_state`."""
    return begin_state(nn.unbox(init_params(model, key)), key, **parts)
