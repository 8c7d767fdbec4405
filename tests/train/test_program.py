"""The jitted program: devices change nothing, layers run scanned or not, nothing recompiles."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.config import RunConfig, finalize
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import init_params
from gpt_jax.optim import AdamW, Muon
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.train.program import (
    choose_micro_batches,
    choose_steps_per_call,
    make_program,
)
from tests.golden_file import check_golden_numbers
from tests.tiny_config import VARIANTS, get_config


def _config(variant='adamw', **model) -> RunConfig:
    config = get_config(variant)
    for name, value in model.items():
        setattr(config.model, name, value)
    return finalize(config, vocab_size=65)


def _losses(config: RunConfig, *, devices=1, steps=3) -> list[float]:
    program = make_program(config, make_mesh(MeshConfig(data=devices)))
    state = program.init(jax.random.key(config.seed))
    losses = []
    for step in range(steps):
        tokens = np.random.default_rng(step).integers(0, 65, (8, 33)).astype(np.int32)
        state, metrics = program.advance(state, [{'tokens': tokens}])
        losses.append(float(metrics['loss']))
    return losses


@pytest.mark.parametrize('variant', ['adamw', 'muon'])
def test_eight_devices_equal_one(variant):
    config = _config(variant)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, grad_accumulation=1)
    )
    np.testing.assert_allclose(_losses(config, devices=8), _losses(config), rtol=1e-5)


def test_scanned_layers_train_like_unrolled_ones():
    np.testing.assert_allclose(
        _losses(_config(scan_layers='on', window_pattern=(8, 0))),
        _losses(_config(scan_layers='off', window_pattern=(8, 0))),
        rtol=1e-5,
    )


def test_losses_of_three_steps():
    """The same numbers on every machine and on both supported versions of jax, to 1e-5."""
    losses = {variant: _losses(_config(variant)) for variant in VARIANTS}
    check_golden_numbers('losses.txt', losses, rtol=1e-5)


def test_one_program_for_all_steps():
    config = _config()
    program = make_program(config, make_mesh(MeshConfig(data=2)))
    step = program.train_step.__wrapped__
    state = program.init(jax.random.key(0))
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(0, 65, (8, 33)).astype(np.int32)
        state, _ = program.advance(state, [{'tokens': tokens}])
    assert step._cache_size() == 1


def test_the_state_is_donated():
    program = make_program(_config(), make_mesh(MeshConfig(data=1)))
    state = program.init(jax.random.key(0))
    tokens = np.zeros((8, 33), np.int32)
    program.advance(state, [{'tokens': tokens}])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_every_block_constrains_its_activations():
    config = get_config()
    config.train.grad_accumulation = 1
    config = finalize(config, vocab_size=65)
    program = make_program(config, make_mesh(MeshConfig(data=8)))
    batch = {'tokens': jax.ShapeDtypeStruct((64, 33), np.int32)}
    lowered = program.train_step.lower(program.abstract_state, batch, program.numbers).as_text()
    constraints = lowered.count('sdy.sharding_constraint') + lowered.count('@Sharding')
    assert constraints >= config.model.num_layers + 1


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r'config.train.batch_size / .* not divisible by the 8'):
        make_program(_config(), make_mesh(MeshConfig(data=8)))


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match='config.mesh.data=9'):
        make_mesh(MeshConfig(data=9))


def test_initial_weights_depend_on_the_seed_alone():
    def table(devices, seed):
        program = make_program(_config(), make_mesh(MeshConfig(data=devices)))
        return np.asarray(program.init(jax.random.key(seed)).params['embedding']['table'])

    np.testing.assert_array_equal(table(1, 0), table(4, 0))
    assert (table(1, 0) != table(1, 1)).any()


def test_initial_weights_are_the_same_where_they_compile_quickly(monkeypatch):
    """`compiler_options.ONCE` lowers LLVM's effort, and no bit of the result."""
    monkeypatch.setenv('XLA_FLAGS', '')  # read when a program is made: ONCE counts
    program = make_program(_config(), make_mesh(MeshConfig(data=1)))
    quick = program.init(jax.random.key(0)).params
    draw = functools.partial(init_params, _config().model)
    best = jax.jit(draw, compiler_options={'xla_backend_optimization_level': 3})
    jax.tree.map(np.testing.assert_array_equal, quick, nn.unbox(best(jax.random.key(0))))


def test_moments_are_sharded_like_their_parameters():
    for optimizer in (AdamW(), Muon()):
        config = get_config()
        config.optimizer = optimizer
        program = make_program(finalize(config, vocab_size=65), make_mesh(MeshConfig(data=2)))
        state = program.abstract_state
        assert all(leaf.sharding.mesh == program.mesh for leaf in jax.tree.leaves(state))


def test_ten_steps_in_a_call_equal_ten_calls():
    """To 1e-6 over 20 steps, with a row of metrics for each."""
    config = _config()
    batches = [
        {'tokens': np.random.default_rng(step).integers(0, 65, (8, 33)).astype(np.int32)}
        for step in range(20)
    ]

    def rows(steps_per_call):
        program = make_program(config, make_mesh(MeshConfig(data=2)))
        state = program.init(jax.random.key(0))
        calls = []
        for start in range(0, 20, steps_per_call):
            state, metrics = program.advance(state, batches[start : start + steps_per_call])
            calls.append(metrics)
        return {name: np.hstack([call[name] for call in calls]) for name in calls[0]}

    one, ten = rows(1), rows(10)
    assert all(values.shape == (20,) for values in ten.values())
    for name, values in one.items():
        np.testing.assert_allclose(ten[name], values, rtol=1e-6, err_msg=name)


def test_calls_stay_aligned():
    config = get_config()
    config.train.steps_per_call = 5
    program = make_program(finalize(config, vocab_size=65), make_mesh(MeshConfig(data=1)))
    lengths, step = [], 3  # as after a run with another number of steps a call
    while step < 17:
        lengths.append(program.call_length(step, 17))
        step += lengths[-1]
    assert lengths == [1, 1, 5, 5, 1, 1]


@pytest.mark.parametrize(
    ('backend', 'save_every', 'd_model', 'expected'),
    [('cpu', 10, 32, 10), ('cpu', 18, 32, 9), ('cpu', 10, 8192, 1), ('gpu', 10, 32, 1)],
)
def test_steps_per_call_by_backend_and_size(backend, save_every, d_model, expected):
    config = get_config()
    config.checkpoint.save_every, config.eval.every = save_every, 0
    config.model.d_model = d_model
    assert choose_steps_per_call(finalize(config, vocab_size=65), backend=backend) == expected


@pytest.mark.parametrize(
    ('backend', 'asked', 'd_ff', 'devices', 'expected'),
    [
        ('cpu', 0, 128, 1, 1),
        ('cpu', 0, 2**14, 1, 4),  # 2 of 8 rows: 2 * 32 * 2**14 float32 are 4 MiB
        ('cpu', 0, 2**14, 2, 2),
        ('cpu', 0, 2**20, 1, 8),  # a row at a time is all that can be done
        ('cpu', 0, 2**20, 8, 1),
        ('cpu', 2, 2**20, 1, 2),
        ('gpu', 0, 2**20, 1, 1),
    ],
)
def test_micro_batches_fit_the_caches(backend, asked, d_ff, devices, expected):
    config = get_config()
    config.train.grad_accumulation, config.model.d_ff = asked, d_ff
    config = finalize(config, vocab_size=65)
    assert choose_micro_batches(config, backend=backend, devices=devices) == expected


def test_a_cadence_inside_a_call_is_refused():
    config = get_config()
    config.train.steps_per_call = 4
    with pytest.raises(UserError, match=r'config.eval.every=10 is not a multiple of .*call=4'):
        finalize(config, vocab_size=65)
