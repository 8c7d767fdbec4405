import math

import jax
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.optim.schedule import SCHEDULES, ScheduleConfig, ScheduleKind, make_schedule


def nanogpt_get_lr(it, *, learning_rate, min_lr, warmup_iters, lr_decay_iters):
    """nanoGPT's train.py, get_lr."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


def values(config, *, steps, learning_rate=1e-3, num_steps=100):
    schedule = make_schedule(config, learning_rate=learning_rate, num_steps=num_steps)
    return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(steps)))


@pytest.mark.parametrize('warmup', [0, 1, 10, 100])
@pytest.mark.parametrize('decay_steps', [0, 150, 300])
def test_cosine_is_nanogpts(warmup, decay_steps):
    config = ScheduleConfig(warmup_steps=warmup, decay_steps=decay_steps, final_fraction=0.1)
    expected = [
        nanogpt_get_lr(
            it,
            learning_rate=6e-4,
            min_lr=6e-5,
            warmup_iters=warmup,
            lr_decay_iters=decay_steps or 200,
        )
        for it in range(400)
    ]
    actual = values(config, steps=400, learning_rate=6e-4, num_steps=200)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=6e-4 * 1e-7)


def test_linear_falls_in_a_straight_line():
    config = ScheduleConfig(kind=ScheduleKind.LINEAR, warmup_steps=20, final_fraction=0.0)
    actual = values(config, steps=110)
    np.testing.assert_allclose(actual[20:101], np.linspace(1e-3, 0, 81), atol=1e-9)
    np.testing.assert_allclose(actual[101:], 0, atol=1e-10)


def test_constant_stays():
    config = ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=4)
    np.testing.assert_allclose(
        values(config, steps=8), [2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3, 1e-3, 1e-3], rtol=1e-6
    )


def test_wsd_is_stable_then_falls():
    config = ScheduleConfig(
        kind=ScheduleKind.WSD, warmup_steps=10, wsd_decay_fraction=0.3, final_fraction=0.0
    )
    actual = values(config, steps=110)
    np.testing.assert_allclose(actual[10:71], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(actual[70:101], np.linspace(1e-3, 0, 31), atol=1e-9)


def test_wsd_never_decays_inside_the_warmup():
    config = ScheduleConfig(kind=ScheduleKind.WSD, warmup_steps=80, wsd_decay_fraction=1.0)
    actual = values(config, steps=101)
    assert np.argmax(actual) == 80
    np.testing.assert_allclose(actual[[80, 100]], [1e-3, 1e-4], rtol=1e-6)


def test_inverse_sqrt_halves_when_the_steps_quadruple():
    config = ScheduleConfig(kind=ScheduleKind.INVERSE_SQRT, warmup_steps=24)
    actual = values(config, steps=500)
    np.testing.assert_allclose(actual[[24, 99, 399]], [1e-3, 5e-4, 2.5e-4], rtol=1e-6)


@pytest.mark.parametrize('kind', SCHEDULES)
def test_every_schedule_warms_up_to_its_peak_and_is_positive(kind):
    actual = values(ScheduleConfig(kind=kind, warmup_steps=9), steps=100)
    np.testing.assert_allclose(actual[:10], 1e-3 * np.arange(1, 11) / 10, rtol=1e-6)
    assert (actual > 0).all() and actual.max() == actual[9]


@pytest.mark.parametrize('kind', SCHEDULES)
def test_a_run_shorter_than_its_warmup_ends_in_it(kind):
    actual = values(ScheduleConfig(kind=kind, warmup_steps=9), steps=5, num_steps=5)
    np.testing.assert_allclose(actual, 1e-3 * np.arange(1, 6) / 10, rtol=1e-6)


@pytest.mark.parametrize(
    'change, learning_rate, message',
    [
        ({'warmup_steps': -1}, 1e-3, 'config.schedule.warmup_steps=-1'),
        ({'decay_steps': 50}, 1e-3, 'config.schedule.decay_steps=50'),
        ({'final_fraction': 1.5}, 1e-3, 'config.schedule.final_fraction=1.5'),
        ({'wsd_decay_fraction': -0.1}, 1e-3, 'config.schedule.wsd_decay_fraction=-0.1'),
        ({}, 0.0, 'config.optimizer.learning_rate=0.0'),
        ({}, math.nan, 'config.optimizer.learning_rate=nan'),
    ],
)
def test_wrong_values_name_their_key(change, learning_rate, message):
    with pytest.raises(UserError, match=message):
        make_schedule(ScheduleConfig(**change), learning_rate=learning_rate, num_steps=100)
