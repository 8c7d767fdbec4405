"""Optimizers: their table, and the function that builds one from its config and a schedule.

An optimizer is a file with a config dataclass and `make(config, schedule, groups)`. To skip a step,
keep the old parameters and the whole old state. Optimizers count steps only in their state, so the
schedule advances once per applied update.
"""

from collections.abc import Callable

import optax

from gpt_jax.optim import adafactor, adamw, lion, muon, sgd
from gpt_jax.optim.adafactor import Adafactor
from gpt_jax.optim.adamw import AdamW
from gpt_jax.optim.lion import Lion
from gpt_jax.optim.muon import Muon
from gpt_jax.optim.param_groups import ParameterGroups
from gpt_jax.optim.precision import in_float32
from gpt_jax.optim.sgd import SGD

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
    return in_float32(make(config, schedule, groups))
