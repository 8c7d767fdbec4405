"""AdamW: Adam with decoupled weight decay on the matrices (https://arxiv.org/abs/1711.05101)."""

import dataclasses

import jax.numpy as jnp
import optax

from gpt_jax.config_tree import finite, fraction, positive
from gpt_jax.moved_keys import KeepsMovedValues, accepts_moved_keys
from gpt_jax.parameter import ParameterGroups


@accepts_moved_keys('optimizer')
@dataclasses.dataclass(slots=True, kw_only=True)
class AdamW(KeepsMovedValues):
    """Settings of AdamW; the defaults are nanoGPT's for GPT-2 124M."""

    learning_rate: float = positive(6e-4)  # peak of the schedule
    beta1: float = fraction(0.9)  # decay of the mean of gradients
    beta2: float = fraction(0.95)  # decay of the mean of squared gradients
    epsilon: float = finite(1e-8)  # added to the root of the squared mean
    weight_decay: float = finite(0.1)  # times the learning rate; matrices only


def make(
    config: AdamW, schedule: optax.Schedule, groups: ParameterGroups
) -> optax.GradientTransformation:
    """Builds the optimizer; the train step clips."""
    return optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        mu_dtype=jnp.float32,
        weight_decay=config.weight_decay,
        mask=groups.decay_mask,
    )
