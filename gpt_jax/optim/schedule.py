"""Learning-rate schedules: a warm-up, then one of `SCHEDULES`.

The warm-up and the cosine are nanoGPT's `get_lr`. Step t of the warm-up has the learning rate
peak * (t + 1) / (warmup_steps + 1): step 0 already learns, and step `warmup_steps` is the first
at the peak.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.config_tree import check_domains, part, whole
from gpt_jax.errors import UserError


class ScheduleKind(enum.StrEnum):
    """The shape of the schedule after the warm-up."""

    CONSTANT = 'constant'
    LINEAR = 'linear'
    COSINE = 'cosine'
    WSD = 'wsd'  # warm-up, stable, decay
    INVERSE_SQRT = 'inverse_sqrt'


@dataclasses.dataclass(slots=True, kw_only=True)
class ScheduleConfig:
    """Settings of the learning-rate schedule; the peak is the optimizer's `learning_rate`."""

    kind: ScheduleKind = ScheduleKind.COSINE
    warmup_steps: int = whole(100)  # steps before the peak
    decay_steps: int = whole(0)  # step at which the decay ends; 0: the run's last step
    final_fraction: float = part(0.1)  # learning rate after the decay, as a fraction of the peak
    wsd_decay_fraction: float = part(0.2)  # wsd: fraction of decay_steps in which the rate falls


Numbers = dict[str, float]  # in a step, scalars that the compiled program takes as arguments


def constant(numbers: Numbers, count: jax.Array) -> jax.Array:
    """Stays at the peak."""
    del count
    return numbers['peak']


def linear(numbers: Numbers, count: jax.Array) -> jax.Array:
    """Decays linearly to the final rate, after `stable_steps` at the peak."""
    count = jnp.clip(count - numbers['stable_steps'], 0, numbers['decay_steps'])
    left = 1 - count * numbers['decay_inverse']
    return numbers['fall'] * left + numbers['final']


def cosine(numbers: Numbers, count: jax.Array) -> jax.Array:
    """Decays along half a cosine to the final rate (https://arxiv.org/abs/1608.03983)."""
    count = jnp.minimum(count, numbers['decay_steps'])
    left = 0.5 * (1 + jnp.cos(count * numbers['turn']))
    return numbers['peak'] * (numbers['falling_fraction'] * left + numbers['final_fraction'])


def inverse_sqrt(numbers: Numbers, count: jax.Array) -> jax.Array:
    """Decays as peak * sqrt((W + 1) / (t + 1)) at step t, with W = warmup_steps.

    See section 5.3 of https://arxiv.org/abs/1706.03762.
    """
    timescale = numbers['warmup_steps'] + 1
    return numbers['peak'] * jnp.sqrt(timescale / (count + timescale))


# Each function returns the rate after the warm-up; count 0 is step `warmup_steps` of the run.
SCHEDULES: dict[ScheduleKind, Callable[[Numbers, jax.Array], jax.Array]] = {
    ScheduleKind.CONSTANT: constant,
    ScheduleKind.LINEAR: linear,
    ScheduleKind.COSINE: cosine,
    ScheduleKind.WSD: linear,  # stays at the peak first (https://arxiv.org/abs/2404.06395)
    ScheduleKind.INVERSE_SQRT: inverse_sqrt,
}


def learning_rate_at(kind: ScheduleKind, numbers: Numbers, count: jax.Array) -> jax.Array:
    """Returns the learning rate of step `count`, from the numbers of `schedule_numbers`."""
    left = 1 - jnp.clip(count, 0, numbers['warmup_steps']) * numbers['warmup_inverse']
    warmup = numbers['climb'] * left + numbers['peak']
    after = SCHEDULES[kind](numbers, count - numbers['warmup_steps'])
    return jnp.where(count < numbers['warmup_steps'], warmup, after)


def make_schedule(
    config: ScheduleConfig, *, learning_rate: float, num_steps: int
) -> optax.Schedule:
    """Returns a function from step to learning rate, with peak `learning_rate`.

    Raises:
        UserError: a value is out of range, or the decay would end before the warm-up does.
    """
    numbers = schedule_numbers(config, learning_rate=learning_rate, num_steps=num_steps)
    return functools.partial(learning_rate_at, config.kind, numbers)


def schedule_numbers(config: ScheduleConfig, *, learning_rate: float, num_steps: int) -> Numbers:
    """Returns the numbers from which `learning_rate_at` computes the learning rate.

    Everything that no step changes is computed here, in Python's precision. A run of `num_steps`
    that is shorter than the warm-up ends during the warm-up.

    Raises:
        UserError: a value is out of range, or the decay would end before the warm-up does.
    """
    check(config)
    if not learning_rate > 0:
        raise UserError(f'config.optimizer.learning_rate={learning_rate} must be positive')
    warmup = config.warmup_steps
    end = config.decay_steps or max(num_steps, warmup + 1)
    decay = end - warmup
    if config.kind == ScheduleKind.WSD:
        decay = min(decay, max(1, round(end * config.wsd_decay_fraction)))
    final = learning_rate * config.final_fraction
    return {
        'peak': float(learning_rate),
        'final': final,
        'fall': learning_rate - final,
        'final_fraction': float(config.final_fraction),
        'falling_fraction': 1.0 - config.final_fraction,
        'climb': learning_rate / (warmup + 1) - learning_rate,  # negative; of what is left
        'warmup_steps': warmup,
        'warmup_inverse': 1 / max(1, warmup),
        'stable_steps': end - warmup - decay,
        'decay_steps': decay,
        'decay_inverse': 1 / decay,
        # Rounded as XLA folds the constants of optax's cosine.
        'turn': float(np.float32(np.pi) * np.float32(1 / decay)),
    }


def check(config: ScheduleConfig) -> None:
    """Rejects values that make no valid schedule.

    Raises:
        UserError: a value is invalid; the message names the key and the fix.
    """
    check_domains(config, 'config.schedule')
    if config.decay_steps and config.decay_steps <= config.warmup_steps:
        raise UserError(
            f'config.schedule.decay_steps={config.decay_steps} must be more than '
            f'config.schedule.warmup_steps={config.warmup_steps}, or 0 for the whole run'
        )
