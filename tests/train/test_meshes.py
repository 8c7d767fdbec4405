"""The same run on every arrangement of 8 devices: the same losses as on one."""

import functools

import jax
import numpy as np
import pytest

from gpt_jax.config import RunConfig, finalize
from gpt_jax.errors import UserError
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.program import make_program
from tests.tiny_config import get_config

STEPS = 20
MESHES = [
    {'data': 8},
    {'data': 1, 'fsdp': 8},
    {'data': 1, 'tensor': 8},  # more than the 4 heads: these stay whole, MLP and loss are split
    {'data': 2, 'fsdp': 2, 'tensor': 2},
    {'data': 1, 'fsdp': 4, 'tensor': 2},
    {'data': 1, 'context': 8},
    {'data': 1, 'fsdp': 2, 'context': 2, 'tensor': 2},
]
EXPERTS = {
    'loss': {'balance_loss': 0.1, 'router_z_loss': 0.01},
    'bias': {'balance': 'bias', 'bias_step': 0.01, 'shared_experts': 1, 'scores': 'sigmoid'},
}
EXPERT_MESHES = [
    ({'data': 2, 'expert': 4}, 'loss'),
    ({'data': 1, 'fsdp': 2, 'expert': 2, 'tensor': 2}, 'bias'),
    ({'data': 1, 'context': 2, 'expert': 4}, 'bias'),
]


def configure(mesh: dict[str, int], experts: str = '', **train) -> RunConfig:
    """A model with dropout and grouped heads, in two micro-batches, with a chunked loss."""
    config = get_config('adamw')
    config.model.num_heads, config.model.num_kv_heads = 4, 2
    config.train.batch_size, config.train.loss_chunk_bytes = 16, 2**14
    config.train.steps_per_call = 5
    config.train.num_steps = STEPS
    config.eval.every = config.checkpoint.save_every = 0
    if experts:
        sizes = {'num_experts': 8, 'd_expert': 32, 'activation': 'relu2'}
        config.model.num_layers = 1
        config.model.mlp = {'_type': 'mixture_of_experts'} | sizes | EXPERTS[experts]
    for axis, size in mesh.items():
        setattr(config.mesh, axis, size)
    for name, value in train.items():
        setattr(config.train, name, value)
    return finalize(config, vocab_size=65)


def batches(config: RunConfig):
    draw = np.random.default_rng(0)
    shape = (config.train.batch_size, config.model.max_seq_len + 1)
    return [{'tokens': draw.integers(0, 65, shape).astype(np.int32)} for _ in range(STEPS)]


def train(config: RunConfig) -> np.ndarray:
    """Loss, gradient norm and parameter norm of each step, and the loss of an evaluation."""
    program = make_program(config, make_mesh(config.mesh))
    state = program.init(jax.random.key(config.seed))
    rows = []
    data = batches(config)
    for start in range(0, STEPS, program.steps_per_call):
        state, metrics = program.advance(state, data[start : start + program.steps_per_call])
        names = ('loss', 'grad_norm', 'param_norm')
        rows.append(np.stack([metrics[name] for name in names], 1))
    sums = program.eval_step(state.params, program.place(data[0]))
    return np.append(np.concatenate(rows), float(sums.cross_entropy) / float(sums.weight))


@functools.cache
def on_one_device(experts: str = '') -> np.ndarray:
    return train(configure({'data': 1}, experts))


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES, ids=str)
def test_losses_of_every_mesh_are_those_of_one_device(mesh):
    np.testing.assert_allclose(train(configure(mesh)), on_one_device(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('mesh, experts', EXPERT_MESHES, ids=str)
def test_losses_of_experts_on_every_mesh_are_those_of_one_device(mesh, experts):
    np.testing.assert_allclose(train(configure(mesh, experts)), on_one_device(experts), rtol=1e-5)


def test_what_does_not_divide_is_refused():
    with pytest.raises(
        UserError, match='= 8 is not divisible by the 3 devices of the data, fsdp and expert axes'
    ):
        make_program(config := configure({'data': 3}), make_mesh(config.mesh))
    with pytest.raises(UserError, match=r'max_seq_len=32 is not divisible by config.mesh.context'):
        make_program(config := configure({'context': 5, 'data': 1}), make_mesh(config.mesh))
