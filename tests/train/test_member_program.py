"""Members of one program train as their own runs."""

import functools

import jax
import numpy as np
import pytest

from gpt_jax.config import finalize
from gpt_jax.parallel.mesh import MeshConfig, make_member_mesh, make_mesh
from gpt_jax.train.member_program import MemberProgram
from gpt_jax.train.program import make_program
from tests.tiny_config import get_config

STEPS = 20


def config_of(**changes):
    config = get_config()
    config.model.num_layers, config.model.d_model = 1, 16
    config.model.use_bias = False  # the gradient of a key bias is 0, and Adam scales its noise up
    config.train.grad_accumulation, config.train.num_steps = 1, STEPS
    for key, value in changes.items():
        branch, _, name = key.rpartition('__')
        setattr(functools.reduce(getattr, filter(None, branch.split('__')), config), name, value)
    return finalize(config, vocab_size=65)


CONFIGS = [
    config_of(),
    config_of(optimizer__learning_rate=3e-3, optimizer__weight_decay=1.0),
    config_of(optimizer__beta1=0.8, optimizer__beta2=0.99, train__clip_norm=0.1),
    config_of(seed=7, schedule__warmup_steps=0, schedule__decay_steps=10),
    config_of(model__init__std=0.1, train__ema_decay=0.5),
]


def batches_of(seed):
    generator = np.random.default_rng(seed)
    return [{'tokens': generator.integers(0, 65, (8, 33)).astype(np.int32)} for _ in range(STEPS)]


@pytest.fixture(scope='module')
def program():
    return make_program(CONFIGS[0], make_mesh(MeshConfig(data=1)))


@pytest.fixture(scope='module')
def own_runs(program):
    """The losses and the last weights of each run; one compiled step serves all."""
    found = []
    for config in CONFIGS:
        mine = program.of_member(config)
        state, losses = mine.init(jax.random.key(config.seed)), []
        for batch in batches_of(config.seed):
            state, metrics = mine.advance(state, [batch])
            losses.append(float(metrics['loss']))
        found.append((losses, jax.device_get(state.params)))
    return found


@pytest.mark.parametrize(('devices', 'vectorized'), [(1, True), (2, True), (2, False)])
def test_members_equal_their_own_runs(program, own_runs, devices, vectorized):
    together = MemberProgram(
        program,
        [program.of_member(config).numbers for config in CONFIGS],
        streams=[0, 0, 0, 1, 0],
        mesh=make_member_mesh(len(CONFIGS), jax.devices()[:devices]),
        vectorized=vectorized,
    )
    inits = [program.of_member(c).init(jax.random.key(c.seed)) for c in CONFIGS]
    states, losses = together.stack(inits), []
    for call in zip(batches_of(0), batches_of(7), strict=True):
        states, metrics = together.advance(states, [[batch] for batch in call])
        losses.append([float(np.asarray(each['loss'])) for each in metrics])
    assert len(states.step.sharding.device_set) == devices
    for index, (expected, params) in enumerate(own_runs):
        np.testing.assert_allclose([row[index] for row in losses], expected, rtol=0, atol=1e-5)
        mine = together.member(states, index)
        assert mine.step.sharding == program.abstract_state.step.sharding
        for ours, theirs in zip(jax.tree.leaves(mine.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
