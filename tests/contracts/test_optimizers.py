"""The trainer's demands on every entry of OPTIMIZERS."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gpt_jax.optim import OPTIMIZERS, Muon, OptimizerConfig, make_optimizer
from gpt_jax.optim.schedule import ScheduleConfig, make_schedule
from gpt_jax.optim.state import follow_parameters
from tests.optim.parameters import GROUPS, SHAPES, distance, flatten, random_tree

NUM_STEPS = 40
WARMUP = 3
CONFIGS = {kind.__name__: kind for kind in OPTIMIZERS}


def build(config):
    schedule = make_schedule(
        ScheduleConfig(warmup_steps=WARMUP),
        learning_rate=config.learning_rate,
        num_steps=NUM_STEPS,
    )
    return make_optimizer(config, schedule, GROUPS)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys(), scope='module')
def optimizer(request):
    return build(request.param(learning_rate=0.05))


@pytest.fixture(scope='module')
def step(optimizer):
    """(params, state, target) -> (params, state, loss), jitted once for the module's tests."""

    @jax.jit
    def step(params, state, target):
        loss, gradients = jax.value_and_grad(distance)(params, target)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def test_the_table_and_the_union_agree():
    assert set(OPTIMIZERS) == set(typing.get_args(OptimizerConfig))


def test_the_loss_falls(optimizer, step):
    params, target = random_tree(0), random_tree(1)
    state = optimizer.init(params)
    losses = []
    for _ in range(NUM_STEPS):
        params, state, loss = step(params, state, target)
        losses.append(float(loss))
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_every_parameter_moves(optimizer, step):
    params = random_tree(0)
    moved, _, _ = step(params, optimizer.init(params), random_tree(1))
    still = [
        path for path, leaf in flatten(moved).items() if np.array_equal(leaf, flatten(params)[path])
    ]
    assert not still


def test_resume_is_bit_exact(optimizer, step):
    """A run that is taken off the device half-way and continued equals the undisturbed one."""
    targets = [random_tree(seed) for seed in range(1, 9)]
    params = random_tree(0)
    state = optimizer.init(params)
    undisturbed = [params, state]
    for target in targets:
        undisturbed[:] = step(*undisturbed, target)[:2]
    for target in targets[:4]:
        params, state, _ = step(params, state, target)
    structure = jax.tree.structure((params, state))
    leaves = [np.array(leaf) for leaf in jax.device_get(jax.tree.leaves((params, state)))]
    params, state = jax.tree.unflatten(structure, map(jnp.asarray, leaves))
    for target in targets[4:]:
        params, state, _ = step(params, state, target)
    assert_equal((params, state), tuple(undisturbed))


def test_a_skipped_update_leaves_no_trace(optimizer):
    """The trainer selects the old leaves when a gradient is not finite."""

    @jax.jit
    def guarded(params, state, gradients):
        finite = jnp.isfinite(optax.tree.norm(gradients))
        updates, new_state = optimizer.update(gradients, state, params)
        new = (optax.apply_updates(params, updates), new_state)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, state))

    good = [random_tree(1), random_tree(2)]
    bad = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), random_tree(3))
    runs = []
    for gradients in (good, [good[0], bad, bad, good[1]]):
        params = random_tree(0)
        state = optimizer.init(params)
        for gradient in gradients:
            params, state = guarded(params, state, gradient)
        runs.append((params, state))
    assert_equal(*runs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(runs[1]))


def test_the_state_has_a_fixed_structure(optimizer, step):
    params = random_tree(0)
    state = optimizer.init(params)
    _, new_state, _ = step(params, state, random_tree(1))
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert describe(state) == describe(new_state)


def test_state_sharding_follows_the_parameters(optimizer):
    """Every moment lies as its parameter does; factored moments and counts are on all devices."""
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    split, whole = (
        NamedSharding(mesh, PartitionSpec(None, None, 'data')),
        NamedSharding(mesh, PartitionSpec()),
    )
    shapes = jax.eval_shape(lambda: random_tree(0))
    shardings = jax.tree.map(lambda leaf: split if leaf.ndim == 3 else whole, shapes)
    placement = follow_parameters(
        jax.eval_shape(optimizer.init, shapes), shapes, shardings, default=whole
    )
    params = jax.device_put(random_tree(0), shardings)
    state = jax.jit(optimizer.init, out_shardings=placement)(params)
    followed = [path for path, leaf in flatten(state).items() if leaf.sharding == split]
    expected = [
        path
        for path, leaf in flatten(state).items()
        if path.endswith(tuple(name for name, shape in SHAPES.items() if leaf.shape == shape))
        and leaf.ndim == 3
    ]
    assert followed == expected and len(followed) >= 3


@pytest.mark.parametrize('kind', OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_moments_are_float32_whatever_the_parameters_are(kind):
    optimizer = build(kind())
    params = random_tree(0, dtype=jnp.bfloat16)
    state = jax.eval_shape(optimizer.init, params)
    updates, new_state = jax.eval_shape(optimizer.update, params, state, params)
    for tree in (state, new_state, updates):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(tree)}
        assert dtypes <= {np.dtype('float32'), np.dtype('int32')}
    assert jax.eval_shape(optax.apply_updates, params, updates) == jax.eval_shape(
        lambda: random_tree(0, dtype=jnp.bfloat16)
    )


@pytest.mark.parametrize('kind', OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_decay_shrinks_matrices_only(kind):
    """With zero gradients the update is the decay: along a matrix, nothing of a vector."""
    params = random_tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = build(kind(weight_decay=0.5))
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    rate = kind().learning_rate / (WARMUP + 1)
    for path, update in flatten(updates).items():
        factor = 0.0 if path.endswith(('bias', 'scale')) else 0.5 * rate
        if kind is Muon and not (path.startswith('blocks/') and path.endswith('kernel')):
            factor *= kind().adamw_ratio
        np.testing.assert_allclose(
            update, -factor * flatten(params)[path], rtol=1e-5, atol=1e-9, err_msg=path
        )


def assert_equal(actual, expected):
    for (path, a), b in zip(flatten(actual).items(), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
