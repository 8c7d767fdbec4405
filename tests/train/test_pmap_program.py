"""The pmap program against the jitted one: losses, metrics, evaluation and state."""

import functools

import jax
import numpy as np
import pytest

from gpt_jax.config import RunConfig, finalize
from gpt_jax.errors import UserError
from gpt_jax.modes import compile_check
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.program import Program, make_program
from tests.tiny_config import get_config

STEPS, BATCH, LENGTH = 20, 16, 32


def configure(program: str, *, data: int = 8, **mesh) -> RunConfig:
    """A model with dropout of all kinds, in two micro-batches."""
    config = get_config('adamw')
    config.train.batch_size, config.train.steps_per_call = BATCH, 5
    config.train.num_steps = STEPS
    config.train.z_loss = 1e-3
    config.eval.every = config.checkpoint.save_every = 0
    for name, value in dict(program=program, data=data, **mesh).items():
        setattr(config.mesh, name, value)
    return finalize(config, vocab_size=65)


def build(program: str, **mesh) -> Program:
    config = configure(program, **mesh)
    return make_program(config, make_mesh(config.mesh))


def batches() -> list[dict[str, np.ndarray]]:
    """Tokens, and weights of which the replicas have different sums."""
    draw = np.random.default_rng(0)
    weights = np.linspace(0, 1, BATCH)[:, None] > draw.random((STEPS, BATCH, LENGTH))
    return [
        {
            'tokens': draw.integers(0, 65, (BATCH, LENGTH + 1)).astype(np.int32),
            'loss_mask': weights[step].astype(np.float32),
        }
        for step in range(STEPS)
    ]


def train(program: Program, state, *, first=0, last=STEPS):
    """The state and the metrics of each step, in calls of five steps and of one."""
    rows, step = [], first
    while step < last:
        count = program.call_length(step, last)
        state, metrics = program.advance(state, batches()[step : step + count])
        rows.append({name: np.atleast_1d(value) for name, value in metrics.items()})
        step += count
    return state, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope='module')
def jitted():
    program = build('jit')
    state, metrics = train(program, program.init(jax.random.key(0)))
    return program, state, metrics


@pytest.mark.parametrize('data', [8, 2])
def test_metrics_state_and_evaluation_are_those_of_the_jitted_program(jitted, data):
    reference, expected, rows = jitted
    program = build('pmap', data=data)
    state, metrics = train(program, program.init(jax.random.key(0)))
    assert metrics.keys() == rows.keys()
    for name, values in rows.items():
        assert metrics[name].dtype == values.dtype
        # The z-loss is the difference of two losses.
        np.testing.assert_allclose(metrics[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    jax.tree.map(assert_close, jax.device_get(state), jax.device_get(expected))
    batch = batches()[0]
    actual = program.eval_step(state.params, program.place(batch))
    sums = reference.eval_step(expected.params, reference.place(batch))
    assert float(actual.weight) == batch['loss_mask'].sum()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), actual, sums)


def test_a_run_goes_on_in_the_other_program(jitted):
    """Either program takes the state that the other one made."""
    reference, _, rows = jitted
    program = build('pmap')
    start = program.init(jax.random.key(0))
    state, first = train(program, start, last=10)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start.params)), 'donated'
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    assert described == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), reference.abstract_state
    )
    state, second = train(reference, state, first=10, last=15)
    _, third = train(program, state, first=15)
    losses = np.concatenate([part['loss'] for part in (first, second, third)])
    np.testing.assert_allclose(losses, rows['loss'], rtol=1e-5)


def test_it_lowers_from_shapes():
    program = build('pmap', data=2)
    lowered = program.lower(program.abstract_state, batches()[:1])
    assert 'all_reduce' in lowered.as_text()


@pytest.mark.parametrize('axis', ['fsdp', 'tensor', 'context'])
def test_a_mesh_of_more_than_replicas_is_refused(axis):
    message = f'config.mesh.program=pmap .* set config.mesh.{axis}=1 .it is 2. or'
    with pytest.raises(UserError, match=message):
        build('pmap', data=2, **{axis: 2})


def test_compile_check_describes_the_jitted_program_only():
    with pytest.raises(UserError, match=r'compile_check .* set config.mesh.program=jit'):
        compile_check._adapt(configure('pmap'), jax.devices()[0], num_slices=1)
