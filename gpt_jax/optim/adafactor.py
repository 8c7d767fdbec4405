"""Adafactor: one row and one column of second moments per matrix (arxiv.org/abs/1804.04235).

optax factors the two largest axes of a leaf and clips and scales by the RMS of a whole leaf. For
parameters stacked over layers, that would mix layers and could factor the two axes of a head.
So every leaf under `blocks/` is reshaped to one matrix or vector per layer, and the optimizer is
mapped over the layer axis N: each layer is updated independently.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from gpt_jax.config_tree import count, finite, fraction, positive
from gpt_jax.moved_keys import KeepsMovedValues, accepts_moved_keys
from gpt_jax.parameter import ParameterGroups, PyTree, map_with_path


@accepts_moved_keys('optimizer')
@dataclasses.dataclass(slots=True, kw_only=True)
class Adafactor(KeepsMovedValues):
    """Settings of Adafactor; `parameter_scale` makes the rate relative to each parameter's RMS."""

    learning_rate: float = positive(0.01)  # peak of the schedule
    decay_exponent: float = finite(0.8)  # second moments decay by 1 - step ** -decay_exponent
    min_factored_size: int = count(128)  # a matrix with a smaller axis keeps all its second moments
    update_clip: float = positive(1.0)  # largest RMS of a parameter's update before the rate
    parameter_scale: bool = True  # scale the update by the RMS of the parameter
    momentum: float = fraction(0.0)  # decay of the mean of updates; 0: no momentum
    weight_decay: float = finite(0.0)  # times the learning rate; matrices only


def make(
    config: Adafactor, schedule: optax.Schedule, groups: ParameterGroups
) -> optax.GradientTransformation:
    """Builds the optimizer; the train step clips."""

    def labels(params: PyTree) -> PyTree:
        """Labels parameters by the axes over which they are stacked."""
        names = ('rest', 'layers', 'experts')
        return map_with_path(lambda path, _: names[groups.declared[path].batch_axes], params)

    direction = optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=config.decay_exponent, min_dim_size_to_factor=config.min_factored_size
        ),
        optax.clip_by_block_rms(config.update_clip),
        optax.scale_by_param_block_rms() if config.parameter_scale else optax.identity(),
    )
    kinds = {'layers': per_layer(direction, groups), 'rest': direction}
    if any(each.batch_axes > 1 for each in groups.declared.values()):
        kinds['experts'] = kinds['layers']
    momentum = optax.ema(config.momentum, debias=False, accumulator_dtype=jnp.float32)
    return optax.chain(
        optax.partition(kinds, labels),
        momentum if config.momentum else optax.identity(),
        optax.add_decayed_weights(config.weight_decay, mask=groups.decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def per_layer(
    direction: optax.GradientTransformation, groups: ParameterGroups
) -> optax.GradientTransformation:
    """Applies `direction` to each layer (and expert) of a tree separately, with the heads merged.

    `direction` is the chain that `make` builds: only its factored moments get a layer axis, and
    all layers share their step count. A tree without arrays (all layers frozen) has no state.
    """
    moments = optax.FactoredState(count=None, v_row=0, v_col=0, v=0)
    axes = (moments, optax.EmptyState(), optax.EmptyState())

    def init(params):
        if not jax.tree.leaves(params):
            return optax.EmptyState()
        return jax.vmap(direction.init, out_axes=axes)(as_matrices(params, groups))

    def update(gradients, state, params):
        if not jax.tree.leaves(gradients):
            return gradients, state
        updates, state = jax.vmap(direction.update, in_axes=(0, axes, 0), out_axes=(0, axes))(
            as_matrices(gradients, groups), state, as_matrices(params, groups)
        )
        return jax.tree.map(lambda update, like: update.reshape(like.shape), updates, params), state

    return optax.GradientTransformation(init, update)


def as_matrices(tree: PyTree, groups: ParameterGroups) -> PyTree:
    """Reshapes leaves by `matrix_shape`: [N, inputs, outputs] or [N, size]."""
    return map_with_path(
        lambda path, leaf: leaf.reshape(groups.matrix_shape(path, leaf.shape)), tree
    )
