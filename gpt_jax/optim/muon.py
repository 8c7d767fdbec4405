"""Muon for the hidden matrices, AdamW for everything else.

Muon (https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the
nearest orthogonal matrix, so that all directions move equally far. It applies to matrices that
multiply activations. Each layer is updated separately, with the layer axis of the stored
parameters as a batch axis; all heads of a projection are one matrix. Embeddings, the output
layer, norm scales and biases use AdamW at `adamw_ratio` times the learning rate of the same step.
"""

import dataclasses
import math

import jax.numpy as jnp
import optax
from optax import contrib

from gpt_jax.config_tree import finite, fraction, positive, whole
from gpt_jax.moved_keys import KeepsMovedValues, accepts_moved_keys
from gpt_jax.optim import adamw
from gpt_jax.parameter import ParameterGroups, PyTree, Role, map_with_path


@accepts_moved_keys('optimizer')
@dataclasses.dataclass(slots=True, kw_only=True)
class Muon(KeepsMovedValues):
    """Settings of Muon; updates have spectral norm rate * sqrt(max(1, outputs / inputs))."""

    learning_rate: float = positive(0.02)  # peak of the schedule, for hidden matrices
    momentum: float = fraction(0.95)  # decay of the mean of gradients
    nesterov: bool = True  # look one momentum step ahead
    newton_schulz_steps: int = whole(5, low=1, high=100)  # iterations of the orthogonalisation
    consistent_rms: float = finite(0.0)  # RMS of an update (0.2: Moonlight, 2502.16982); 0: off
    weight_decay: float = finite(0.01)  # times the learning rate of the group; matrices only
    adamw_ratio: float = finite(0.15)  # AdamW's learning rate divided by Muon's
    adamw_beta1: float = fraction(0.9)  # AdamW's decay of the mean of gradients
    adamw_beta2: float = fraction(0.95)  # AdamW's decay of the mean of squared gradients
    adamw_epsilon: float = finite(1e-8)  # added to the root of AdamW's squared mean

    def update_norm(self, inputs: float, outputs: float) -> float:
        """Returns the spectral norm of an update of a matrix at rate 1, as optax scales it."""
        if self.consistent_rms:
            return math.sqrt(max(inputs, outputs))  # times the RMS, a number of the step
        return math.sqrt(max(1, outputs / inputs))


def make(
    config: Muon, schedule: optax.Schedule, groups: ParameterGroups
) -> optax.GradientTransformation:
    """Builds the optimizer; the train step clips."""

    def labels(params: PyTree) -> PyTree:
        """Labels hidden matrices 'muon', all other parameters 'adamw'."""
        return map_with_path(
            lambda path, _: 'muon' if groups.role(path) is Role.HIDDEN else 'adamw', params
        )

    def dimension_numbers(hidden: PyTree) -> PyTree:
        """Returns the matrix axes of hidden kernels; optax treats the other axes as a batch."""
        return map_with_path(
            lambda path, leaf: contrib.MuonDimensionNumbers(*groups.matrix_axes(path, leaf.ndim)),
            hidden,
        )

    hidden = contrib.muon(
        schedule,
        ns_steps=config.newton_schulz_steps,
        beta=config.momentum,
        mu_dtype=jnp.float32,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        consistent_rms=config.consistent_rms or None,
        muon_weight_dimension_numbers=dimension_numbers,
    )
    rest = adamw.make(
        adamw.AdamW(
            beta1=config.adamw_beta1,
            beta2=config.adamw_beta2,
            epsilon=config.adamw_epsilon,
            weight_decay=config.weight_decay,
        ),
        lambda count: config.adamw_ratio * schedule(count),
        groups,
    )
    return optax.partition({'muon': hidden, 'adamw': rest}, labels)
