"""Updates of weights that are wider than in the base model (μP, maximal update parametrization).

The rules are those of tables 3 and 8 of Yang et al. 2022 (https://arxiv.org/abs/2203.03466), in a
form that is one for all optimizers. With a weight's fan-in and fan-out divided by those of the base
model (`Parameter.growth`): gradients shrink as the fan-out, and updates must shrink as the fan-in.
So gradients are multiplied by the one, which Adam's epsilon needs and the sign of Lion ignores, and
updates are divided by the other. Muon has the spectral condition of Yang et al. 2023
(https://arxiv.org/abs/2310.17813) instead: the spectral norm of an update is √(fan-out / fan-in).
"""

import math
from collections.abc import Callable
from typing import Any

import optax

from gpt_jax.errors import UserError
from gpt_jax.optim.adafactor import Adafactor
from gpt_jax.optim.muon import Muon
from gpt_jax.parameter import Growth, Parameter, ParameterGroups, PyTree, Role, map_with_path


def scale_by_growth(
    optimizer: optax.GradientTransformation, config: Any, groups: ParameterGroups
) -> optax.GradientTransformation:
    """Wraps an optimizer so that its hyperparameters are those of the base model.

    Weight decay does not follow a weight's rate: per step, a weight loses the same share at every
    width. Returns the optimizer itself if nothing grows.

    Raises:
        UserError: there is no rule for the optimizer.
    """
    if all(each.growth == Growth() for each in groups.declared.values()):
        return optimizer
    if isinstance(config, Adafactor) and config.parameter_scale:
        raise UserError(
            'config.model.parametrization=mup has no rule for rates relative to the size of a '
            'parameter; set config.optimizer.parameter_scale=False or choose another optimizer'
        )
    rates = {path: rate_multiplier(config, each) for path, each in groups.declared.items()}

    def scale(tree: PyTree, factor: Callable[[str], float]) -> PyTree:
        return map_with_path(
            lambda path, leaf: leaf if factor(path) == 1 else factor(path) * leaf, tree
        )

    def update(gradients: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
        gradients = scale(gradients, lambda path: groups.declared[path].growth.outputs)
        # Optimizers read weights only to decay them: this undoes the rate.
        params = scale(params, lambda path: 1 / rates[path])
        updates, state = optimizer.update(gradients, state, params)
        return scale(updates, rates.__getitem__), state

    return optax.GradientTransformation(optimizer.init, update)


def rate_multiplier(config: Any, parameter: Parameter) -> float:
    """Returns the factor of a weight's updates, relative to the learning rate of the base model."""
    growth = parameter.growth
    if isinstance(config, Muon) and parameter.role is Role.HIDDEN:
        inputs, outputs = parameter.fans
        base = config.update_norm(inputs / growth.inputs, outputs / growth.outputs)
        own = config.update_norm(inputs, outputs)
        return math.sqrt(growth.outputs / growth.inputs) * base / own
    return 1 / growth.inputs
