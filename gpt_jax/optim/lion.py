"""Lion: the sign of an interpolated momentum, one moment (https://arxiv.org/abs/2302.06675)."""

import dataclasses

import jax.numpy as jnp
import optax

from gpt_jax.config_tree import finite, fraction, positive
from gpt_jax.moved_keys import KeepsMovedValues, accepts_moved_keys
from gpt_jax.parameter import ParameterGroups


@accepts_moved_keys('optimizer')
@dataclasses.dataclass(slots=True, kw_only=True)
class Lion(KeepsMovedValues):
    """Settings of Lion; the paper advises 1/3 to 1/10 of AdamW's rate, and 3-10 times its decay."""

    learning_rate: float = positive(1e-4)  # peak of the schedule; every weight moves by this much
    beta1: float = fraction(0.9)  # weight of the momentum in the update
    beta2: float = fraction(0.99)  # decay of the momentum
    weight_decay: float = finite(1.0)  # times the learning rate; matrices only


def make(
    config: Lion, schedule: optax.Schedule, groups: ParameterGroups
) -> optax.GradientTransformation:
    """Builds the optimizer; the train step clips."""
    return optax.lion(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        mu_dtype=jnp.float32,
        weight_decay=config.weight_decay,
        mask=groups.decay_mask,
    )
