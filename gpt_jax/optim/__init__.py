"""Optimizers: their table, and the function that builds one from its config and a schedule.

An optimizer is a file with a config dataclass and `make(config, schedule, groups)`. To skip a step,
keep the old parameters and the whole old state. Optimizers count steps only in their state, so the
schedule advances once per applied update.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from gpt_jax.optim import adafactor, adamw, lion, muon, sgd
from gpt_jax.optim.adafactor import Adafactor
from gpt_jax.optim.adamw import AdamW
from gpt_jax.optim.lion import Lion
from gpt_jax.optim.muon import Muon
from gpt_jax.optim.precision import in_float32
from gpt_jax.optim.sgd import SGD
from gpt_jax.optim.width import scale_by_growth
from gpt_jax.parameter import ParameterGroups, PyTree, Role, map_with_path

OptimizerConfig = AdamW | Lion | Adafactor | Muon | SGD

OPTIMIZERS: dict[type, Callable[..., optax.GradientTransformation]] = {
    AdamW: adamw.make,
    Lion: lion.make,
    Adafactor: adafactor.make,
    Muon: muon.make,
    SGD: sgd.make,
}


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, groups: ParameterGroups
) -> optax.GradientTransformation:
    """Builds the optimizer of parameters stacked over layers.

    Args:
      config: chooses the optimizer.
      schedule: gives the learning rate.
      groups: the declarations of the trained parameters.

    It does not clip: the train step computes the global norm once, for the metrics and for
    `config.train.clip_norm`.
    """
    make = next(make for kind, make in OPTIMIZERS.items() if isinstance(config, kind))
    optimizer = in_float32(scale_by_growth(make(config, schedule, groups), config, groups))
    if not any(each.role is Role.BALANCE for each in groups.declared.values()):
        return optimizer

    def labels(params: PyTree) -> PyTree:
        return map_with_path(
            lambda path, _: 'balance' if groups.role(path) is Role.BALANCE else 'rest', params
        )

    return optax.partition({'rest': optimizer, 'balance': _move_by_steps(groups)}, labels)


def _move_by_steps(groups: ParameterGroups) -> optax.GradientTransformation:
    """Moves each entry of a parameter by its declared step, against the sign of its gradient."""

    def update(gradients: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        return map_with_path(
            lambda path, gradient: -groups.declared[path].step * jnp.sign(gradient), gradients
        ), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
