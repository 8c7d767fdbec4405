"""One step: accumulation, masks, steps that are not finite, averages, clipping, randomness."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from gpt_jax.config import TrainConfig
from gpt_jax.model.gpt import GPT, init_params, parameter_groups
from gpt_jax.optim import SGD, AdamW, make_optimizer
from gpt_jax.optim.schedule import ScheduleConfig, make_schedule
from gpt_jax.train.loss import LossSums
from gpt_jax.train.state import begin_state
from gpt_jax.train.step import StepParts, _accumulate, make_eval_step, make_train_step
from tests.model_configs import make_config

ROWS, LENGTH = 8, 6
# Plain steps: the update is the gradient times the rate, without the division by its size that
# would turn rounding into a full step.
PLAIN = SGD(learning_rate=0.1, momentum=0.0)
NUMBERS = {'seed': 5, 'train': {}}


@functools.cache
def build(optimizer='sgd', clip_norm=0.0, dropout=0.0, micro_batches=1, **train):
    """The jitted step of a tiny model, its parts, and a fresh state."""
    config = make_config(max_seq_len=LENGTH, d_model=16, num_layers=2, dropout=dropout)
    chosen = {'sgd': PLAIN, 'adamw': AdamW(learning_rate=0.01)}[optimizer]
    schedule = make_schedule(
        ScheduleConfig(warmup_steps=4), learning_rate=chosen.learning_rate, num_steps=20
    )
    parts = StepParts(
        model=GPT(config),
        optimizer=lambda numbers: make_optimizer(chosen, schedule, parameter_groups(config)),
        schedule=lambda numbers: schedule,
        train=TrainConfig(batch_size=ROWS, clip_norm=clip_norm, **train),
        micro_batches=micro_batches,
    )
    step = functools.partial(jax.jit(make_train_step(parts)), numbers=NUMBERS)
    params = nn.unbox(init_params(config, jax.random.key(0)))
    return step, parts, make_state(parts, params)


def make_state(parts, params):
    return begin_state(
        params,
        jax.random.key(0),
        optimizer=parts.optimizer(NUMBERS),
        trainable=parts.trainable,
        ema_decay=parts.train.ema_decay,
    )


def make_batch(seed=0, rows=ROWS):
    """Tokens, and a mask that leaves a different number of them in every row."""
    tokens = np.random.default_rng(seed).integers(0, 70, (rows, LENGTH + 1)).astype(np.int32)
    mask = np.arange(LENGTH)[None] < 1 + np.arange(rows)[:, None] % LENGTH
    return {'tokens': tokens, 'loss_mask': mask.astype(np.float32)}


def poisoned(batch):
    """The batch with an infinite weight, which makes the loss of the step infinite or NaN."""
    mask = batch['loss_mask'].copy()
    mask[0, 0] = np.inf
    return batch | {'loss_mask': mask}


def run(step, state, *batches):
    """The state after the batches, and the metrics of each."""
    history = []
    for batch in batches:
        state, metrics = step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def difference_norm(after, before):
    squares = jax.tree.map(lambda a, b: float(np.sum((a - b) ** 2)), after, before)
    return sum(jax.tree.leaves(squares)) ** 0.5


@pytest.mark.parametrize('z_loss', [0.0, 0.01])
def test_micro_batches_change_nothing(z_loss):
    batches = [make_batch(seed) for seed in range(3)]
    step, _, start = build(z_loss=z_loss)
    whole, expected = run(step, start, *batches)
    step, _, start = build(micro_batches=4, z_loss=z_loss)
    split, actual = run(step, start, *batches)
    for metrics, wanted in zip(actual, expected, strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-5)
        assert metrics['loss'] == pytest.approx(wanted['loss'], rel=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), split.params, whole.params
    )
    assert difference_norm(whole.params, start.params) > 0.01


def test_a_masked_micro_batch_changes_nothing():
    step, _, start = build(micro_batches=4)
    batch = make_batch()
    third = np.arange(ROWS) % 4 == 2  # micro-batch i holds every fourth row from row i on
    batch['loss_mask'][third] = 0
    other = dict(batch, tokens=np.where(third[:, None], 7, batch['tokens']))
    assert_equal(step(start, other), step(start, batch))


def test_without_a_token_nothing_is_learned():
    step, _, start = build('adamw', ema_decay=0.9)  # with moments and decay, which would move
    before, _ = run(step, start, make_batch())
    nothing = make_batch() | {'loss_mask': np.zeros((ROWS, LENGTH), np.float32)}
    state, (metrics,) = run(step, before, nothing)
    assert metrics['loss'] == metrics['grad_norm'] == metrics['bad_steps'] == 0
    assert metrics['skipped_steps'] == 1  # the rate waits for the next step
    for name in ('params', 'opt_state', 'ema'):
        assert_equal(getattr(state, name), getattr(before, name))


def test_without_a_mask_every_token_counts():
    step, _, start = build()
    batch = make_batch()
    ones = batch | {'loss_mask': np.ones((ROWS, LENGTH), np.float32)}
    assert_equal(step(start, {'tokens': batch['tokens']}), step(start, ones))


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    step, _, start = build('adamw', ema_decay=0.9)
    good, bad = make_batch(0), poisoned(make_batch(1))
    before, _ = run(step, start, good)
    after, history = run(step, before, bad, bad)
    for name in ('params', 'opt_state', 'ema'):
        assert_equal(getattr(after, name), getattr(before, name))
    assert not np.isfinite(history[0]['loss'])
    assert [m['skipped_steps'] for m in history] == [1, 2]
    assert [m['bad_steps'] for m in history] == [1, 2]
    assert (int(after.step), int(after.skipped), int(after.bad_steps)) == (3, 2, 2)

    recovered, (metrics,) = run(step, after, good)
    assert (metrics['skipped_steps'], metrics['bad_steps']) == (2, 0)
    undisturbed, _ = run(step, before, good)
    for name in ('params', 'opt_state', 'ema'):
        assert_equal(getattr(recovered, name), getattr(undisturbed, name))


def test_infinite_gradients_of_a_finite_loss_are_skipped():
    step, _, start = build('adamw', ema_decay=0.9)
    # The norm squares an entry of 1e20 or more to infinity; the loss does not see it.
    huge = jax.tree.map(lambda leaf: leaf, start.params)
    scale = huge['blocks']['mlp_norm']['scale']
    huge['blocks']['mlp_norm']['scale'] = jnp.full_like(scale, 1e-25)
    kernel = huge['blocks']['mlp']['up']['kernel']
    huge['blocks']['mlp']['up']['kernel'] = kernel * 1e25
    start = dataclasses.replace(start, params=huge)
    state, (metrics,) = run(step, start, make_batch())
    assert np.isfinite(metrics['loss']) and not np.isfinite(metrics['grad_norm'])
    assert metrics['skipped_steps'] == 1
    assert_equal(state.params, huge)


@pytest.mark.parametrize('rate', [np.inf, 1e30])
def test_an_update_that_ruins_the_weights_is_a_bad_step(rate):
    """Finite gradients, and then weights of which the norm is not."""
    _, parts, start = build('adamw', ema_decay=0.9)
    parts = dataclasses.replace(parts, optimizer=lambda numbers: optax.sgd(rate))
    start = make_state(parts, start.params)
    step = functools.partial(jax.jit(make_train_step(parts)), numbers=NUMBERS)
    _, (metrics,) = run(step, start, make_batch())
    assert np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm'])
    assert metrics['bad_steps'] == 1 and metrics['skipped_steps'] == 0
    assert not np.isfinite(metrics['param_norm'])


def test_the_learning_rate_follows_the_updates():
    step, parts, start = build()
    batches = [make_batch(0), poisoned(make_batch(1)), make_batch(2), make_batch(3)]
    rates, applied, state = [], [], start
    for batch in batches:
        new, (metrics,) = run(step, state, batch)
        rates.append(metrics['learning_rate'])
        if np.isfinite(metrics['grad_norm']):
            applied.append(difference_norm(new.params, state.params) / metrics['grad_norm'])
        state = new
    expected = [float(parts.schedule(NUMBERS)(updates)) for updates in (0, 1, 1, 2)]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert applied == pytest.approx([expected[0], *expected[2:]], rel=1e-3)
    assert len(set(expected)) == 3


def test_the_moving_average():
    step, _, start = build('adamw', ema_decay=0.9)
    assert_equal(start.ema, start.params)
    first, _ = run(step, start, make_batch(0))
    second, _ = run(step, first, make_batch(1))
    for before, after in ((start, first), (first, second)):
        expected = jax.tree.map(
            lambda e, p: 0.9 * np.asarray(e) + 0.1 * np.asarray(p), before.ema, after.params
        )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
            after.ema,
            expected,
        )
    assert difference_norm(second.ema, start.ema) > 0.01


def test_clipping():
    free, (expected,) = run(build()[0], build()[2], make_batch())
    step, parts, start = build(clip_norm=0.25)
    clipped, (metrics,) = run(step, start, make_batch())
    rate = float(parts.schedule(NUMBERS)(0))
    assert metrics['grad_norm'] > 0.5
    assert metrics['grad_norm'] == pytest.approx(expected['grad_norm'], rel=1e-6)
    assert difference_norm(clipped.params, start.params) == pytest.approx(rate * 0.25, rel=1e-3)
    shrink = 0.25 / metrics['grad_norm']
    jax.tree.map(
        lambda a, b, s: np.testing.assert_allclose(a - s, shrink * (b - s), rtol=0, atol=1e-7),
        clipped.params,
        free.params,
        start.params,
    )
    step, _, start = build(clip_norm=100.0)
    assert_equal(run(step, start, make_batch())[0].params, free.params)


def test_dropout_is_drawn_from_the_step():
    step, _, start = build(dropout=0.3)
    batch = make_batch()
    first, (metrics,) = run(step, start, batch)
    again, (same,) = run(step, start, batch)
    assert_equal(again, first)
    assert metrics == same
    later = dataclasses.replace(start, step=start.step + 1)
    _, (other,) = run(step, later, batch)
    assert abs(other['loss'] - metrics['loss']) > 1e-4
    _, (without,) = run(build()[0], build()[2], batch)
    assert abs(without['loss'] - metrics['loss']) > 1e-4


def test_micro_batches_draw_their_own_dropout():
    step, _, start = build(dropout=0.3, micro_batches=2)
    row = make_batch(rows=1)['tokens']
    twins = {'tokens': np.repeat(row, ROWS, 0), 'loss_mask': np.ones((ROWS, LENGTH), np.float32)}
    losses = []
    for i in range(2):  # micro-batch i holds every second row from row i on
        mask = twins['loss_mask'] * (np.arange(ROWS) % 2 == i)[:, None]
        losses.append(run(step, start, twins | {'loss_mask': mask})[1][0]['loss'])
    assert abs(losses[0] - losses[1]) > 1e-4


def test_evaluation_sums_what_training_reports():
    step, parts, start = build(z_loss=0.01)
    batch = make_batch()
    _, (metrics,) = run(step, start, batch)
    evaluate = jax.jit(make_eval_step(parts))
    sums = evaluate(start.params, batch)
    weight = batch['loss_mask'].sum()
    assert float(sums.weight) == weight
    assert float(sums.cross_entropy) / weight == pytest.approx(metrics['loss'], rel=1e-5)
    assert float(sums.correct) / weight == pytest.approx(metrics['accuracy'])
    assert metrics['z_loss'] > 0

    # Attention stays within a segment: what the first one says is nothing to the second.
    segments = np.tile(np.arange(LENGTH + 1) >= 3, (ROWS, 1)).astype(np.int32)
    second = (np.arange(LENGTH) >= 3) * np.ones((ROWS, 1), np.float32)
    packed = batch | {'segment_ids': segments, 'loss_mask': second}
    changed = packed | {'tokens': np.where(segments == 0, 7, batch['tokens'])}
    assert_equal(evaluate(start.params, changed), evaluate(start.params, packed))
    joined = {name: changed[name] for name in ('tokens', 'loss_mask')}
    assert float(evaluate(start.params, joined).cross_entropy) != pytest.approx(
        float(evaluate(start.params, packed).cross_entropy), rel=1e-7
    )


def test_gradients_of_bfloat16_are_summed_in_float32():
    """256 and seven times 1, of which a sum in bfloat16 loses the ones."""
    params = {'w': jnp.zeros(3, jnp.bfloat16)}

    def grad_fn(params, micro, index):
        grads = {'w': jnp.where(index == 0, 256, 1) * jnp.ones_like(params['w'])}
        zero = jnp.zeros((), jnp.float32)
        return (zero, (LossSums(zero, zero, zero), {})), jax.tree.map(
            lambda g: g.astype(jnp.bfloat16), grads
        )

    *_, grads = _accumulate(grad_fn, params, {'tokens': jnp.zeros((8, 2), jnp.int32)}, 8, {})
    np.testing.assert_array_equal(grads['w'], 263.0)
