"""Learning-rate schedules: a warm-up, then one of `SCHEDULES`.

The warm-up and the cosine are nanoGPT's `get_lr`. Step t of the warm-up has the learning rate
peak * (t + 1) / (warmup_steps + 1): step 0 already learns, and step `warmup_steps` is the first
at the peak.
"""

import dataclasses
import enum
from collections.abc import Callable

import jax.numpy as jnp
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


def constant(config: ScheduleConfig, *, peak: float, end: int) -> optax.Schedule:
    """Stays at the peak."""
    del config, end
    return optax.constant_schedule(peak)


def linear(config: ScheduleConfig, *, peak: float, end: int) -> optax.Schedule:
    """Decays linearly to the final rate."""
    return optax.linear_schedule(peak, peak * config.final_fraction, end - config.warmup_steps)


def cosine(config: ScheduleConfig, *, peak: float, end: int) -> optax.Schedule:
    """Decays along half a cosine to the final rate (https://arxiv.org/abs/1608.03983)."""
    steps = end - config.warmup_steps
    return optax.cosine_decay_schedule(peak, steps, alpha=config.final_fraction)


def wsd(config: ScheduleConfig, *, peak: float, end: int) -> optax.Schedule:
    """Stays at the peak, then decays linearly to the final rate (arxiv.org/abs/2404.06395)."""
    steps = end - config.warmup_steps
    decay_steps = min(steps, max(1, round(end * config.wsd_decay_fraction)))
    return optax.linear_schedule(
        peak, peak * config.final_fraction, decay_steps, transition_begin=steps - decay_steps
    )


def inverse_sqrt(config: ScheduleConfig, *, peak: float, end: int) -> optax.Schedule:
    """Decays as peak * sqrt((W + 1) / (t + 1)) at step t, with W = warmup_steps.

    See section 5.3 of https://arxiv.org/abs/1706.03762.
    """
    del end
    timescale = config.warmup_steps + 1
    return lambda count: peak * jnp.sqrt(timescale / (count + timescale))


# Each function returns the schedule after the warm-up; count 0 is step `warmup_steps` of the run.
SCHEDULES: dict[ScheduleKind, Callable[..., optax.Schedule]] = {
    ScheduleKind.CONSTANT: constant,
    ScheduleKind.LINEAR: linear,
    ScheduleKind.COSINE: cosine,
    ScheduleKind.WSD: wsd,
    ScheduleKind.INVERSE_SQRT: inverse_sqrt,
}


def make_schedule(
    config: ScheduleConfig, *, learning_rate: float, num_steps: int
) -> optax.Schedule:
    """Returns a function from step to learning rate, with peak `learning_rate`.

    A run of `num_steps` that is shorter than the warm-up ends during the warm-up.

    Raises:
        UserError: a value is out of range, or the decay would end before the warm-up does.
    """
    check(config)
    if not learning_rate > 0:
        raise UserError(f'config.optimizer.learning_rate={learning_rate} must be positive')
    end = config.decay_steps or max(num_steps, config.warmup_steps + 1)
    after = SCHEDULES[config.kind](config, peak=learning_rate, end=end)
    if not config.warmup_steps:
        return after
    first = learning_rate / (config.warmup_steps + 1)
    warmup = optax.linear_schedule(first, learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


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
