"""Stochastic gradient descent with momentum."""

import dataclasses

import jax.numpy as jnp
import optax

from gpt_jax.config_tree import finite, fraction, positive
from gpt_jax.moved_keys import KeepsMovedValues, accepts_moved_keys
from gpt_jax.parameter import ParameterGroups


@accepts_moved_keys('optimizer')
@dataclasses.dataclass(slots=True, kw_only=True)
class SGD(KeepsMovedValues):
    """Settings of SGD; as in torch.optim.SGD, decay is added to the gradient before momentum."""

    learning_rate: float = positive(0.1)  # peak of the schedule
    momentum: float = fraction(0.9)  # decay of the sum of gradients; 0: no momentum
    nesterov: bool = False  # look one momentum step ahead
    weight_decay: float = finite(0.0)  # times the parameter, added to the gradient; matrices only


def make(
    config: SGD, schedule: optax.Schedule, groups: ParameterGroups
) -> optax.GradientTransformation:
    """Builds the optimizer; the train step clips."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=groups.decay_mask),
        optax.sgd(
            schedule,
            momentum=config.momentum or None,
            nesterov=config.nesterov,
            accumulator_dtype=jnp.float32,
        ),
    )
