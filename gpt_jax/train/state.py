"""The training state: everything that a step reads and writes, so a checkpoint must hold it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from gpt_jax.config import RunConfig
from gpt_jax.config_tree import get_value
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import abstract_params, init_params
from gpt_jax.optim import make_optimizer
from gpt_jax.optim.numbers import numbers_of
from gpt_jax.optim.schedule import learning_rate_at, schedule_numbers
from gpt_jax.optim.trainable import Trainable
from gpt_jax.parameter import ParameterGroups

STEP_NUMBERS = ('clip_norm', 'ema_decay')  # of config.train; kernels take z_loss as a constant


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


class Beginning(NamedTuple):
    """The rules by which a run begins; they follow from its config alone."""

    numbers: Any  # of the config, for the step
    schedule: Callable[[Any], optax.Schedule]  # from numbers
    optimizer: Callable[[Any], optax.GradientTransformation]  # from numbers
    trainable: Trainable
    boxed_parts: tuple[Any, Any]  # shapes of the trained tree and of the base, boxed
    begin: Callable[[Any, jax.Array], TrainState]  # from all parameters and a key
    state: TrainState  # its shapes


def plan_beginning(config: RunConfig) -> Beginning:
    """Returns the rules by which the run of a finalized config begins."""
    numbers = step_numbers(config)
    boxed, key = abstract_params(config.model), jax.random.key(0)
    trainable = Trainable(
        lora=config.lora, frozen=config.train.frozen, groups=ParameterGroups.of(boxed)
    )
    boxed_parts = jax.eval_shape(trainable.split, boxed, key)
    groups = ParameterGroups.of(boxed_parts[0])

    def schedule(numbers: Any) -> optax.Schedule:
        return functools.partial(learning_rate_at, config.schedule.kind, numbers['schedule'])

    def optimizer(numbers: Any) -> optax.GradientTransformation:
        chosen = dataclasses.replace(config.optimizer, **numbers['optimizer'])
        return make_optimizer(chosen, schedule(numbers), groups)

    begin = functools.partial(
        begin_state,
        optimizer=make_optimizer(config.optimizer, schedule(numbers), groups),
        trainable=trainable,
        ema_decay=config.train.ema_decay,
    )
    state = jax.eval_shape(begin, nn.unbox(boxed), key)
    return Beginning(numbers, schedule, optimizer, trainable, boxed_parts, begin, state)


def step_numbers(config: RunConfig) -> dict[str, Any]:
    """Returns the numbers that the compiled step of a finalized config takes as an argument.

    Configs whose numbers have the same tree, and that are otherwise equal, share their program.
    """
    return {
        'seed': np.uint32(config.seed),
        'schedule': schedule_numbers(
            config.schedule,
            learning_rate=config.optimizer.learning_rate,
            num_steps=config.train.num_steps,
        ),
        'optimizer': numbers_of(config.optimizer),
        'train': numbers_of(config.train, only=STEP_NUMBERS),
    }


def number_keys(config: RunConfig) -> set[str]:
    """Returns the keys of the config's numbers; runs that differ in these only share their steps.

    The length of the run, which is also a number of the schedule, is not among them.
    """
    numbers = {'optimizer': step_numbers(config)['optimizer'], 'train': STEP_NUMBERS}
    schedule = {field.name for field in dataclasses.fields(config.schedule)} - {'kind'}
    return {
        'seed',
        'model.init.std',
        *(f'schedule.{name}' for name in schedule),
        *(
            f'{branch}.{name}'
            for branch, names in numbers.items()
            for name in names
            if get_value(config, f'{branch}.{name}')
        ),
    }


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


def init_state(
    key: Key[Array, ''], *, model: ModelConfig, begin: Callable[[Any, jax.Array], TrainState]
) -> TrainState:
    """Returns the state before the first step with random weights."""
    return begin(nn.unbox(init_params(model, key)), key)
