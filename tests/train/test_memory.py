"""The memory model: exact where shapes decide, ordered where it estimates, and its advice."""

import dataclasses
import types

import jax
import pytest

from gpt_jax import GPT
from gpt_jax.config import finalize
from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.model.attention import Differential, GroupedQuery, Latent
from gpt_jax.model.config import Remat
from gpt_jax.model.gpt import count_params
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.train.memory import (
    ACCUMULATED_GRADIENTS,
    REMAT_BY_MEMORY,
    estimate_memory,
    explain_out_of_memory,
    fitting,
    format_overrides,
    memory_limit,
    memory_savers,
    with_overrides,
)
from gpt_jax.train.program import Program, make_program
from tests.command_line import TINY
from tests.tiny_config import get_config


def _program(*, mesh=None, **overrides):
    """The tiny run's program and config, with `model__d_model=…`."""
    config = get_config()
    config.train.grad_accumulation = 1
    config.model.dropouts.residual = config.model.dropouts.attention = 0.0
    config.mesh = MeshConfig(**(mesh or {'data': 1}))
    for key, value in overrides.items():
        branch, name = key.split('__')
        setattr(getattr(config, branch), name, value)
    config = finalize(config, vocab_size=65)
    return make_program(config, make_mesh(config.mesh)), config


def _plan(**overrides):
    return estimate_memory(*_program(**overrides))


def test_the_state_is_counted_by_its_shapes_and_shardings():
    program, config = _program()
    plan = estimate_memory(program, config)
    padding = (config.model.padded_vocab_size - 65) * config.model.d_model
    assert plan.parameters == 4 * (count_params(config.model) + padding)
    moments_and_average = 3 * plan.parameters
    assert moments_and_average <= plan.optimizer_state < moments_and_average + 100
    split = _plan(mesh={'data': 1, 'fsdp': 8})
    assert plan.parameters / 8 < split.parameters < plan.parameters / 6  # vectors stay whole


def test_logits_are_those_of_a_chunk():
    rows = 4 * 32 * 128  # float32 logits of a sequence, padded
    assert _plan().logits == 8 * 2 * rows  # and their gradient
    assert _plan(train__loss_chunk_bytes=2 * rows).logits == 2 * 2 * rows
    assert _plan(mesh={'data': 2, 'tensor': 4}).logits == 8 / 2 / 4 * 2 * rows


def test_micro_batches_and_devices_share_the_activations():
    whole = _plan()
    table = 128 * 32 * 8
    halved = _plan(train__grad_accumulation=2)
    assert halved.activations - table == (whole.activations - table) / 2
    assert whole.gradients == whole.parameters
    assert halved.gradients == ACCUMULATED_GRADIENTS * whole.gradients
    assert _plan(mesh={'data': 4}).activations - table == (whole.activations - table) / 4


def test_remat_keeps_less_from_policy_to_policy():
    assert set(REMAT_BY_MEMORY) == set(Remat)
    kept = [
        _plan(model__remat=remat, model__num_layers=12).activations for remat in REMAT_BY_MEMORY
    ]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize(
    ('attention', 'widths', 'score_heads'),
    [
        (GroupedQuery(), (4 * 32, 32), 2),  # query, key, value, output; what the output reads
        (Differential(), (4 * 32, 64), 4),
        (Latent(kv_rank=24, rope_dim=8), (2 * 24 + 24 + 8 + 2 * 32 + 32, 32), 2),
        (
            Latent(kv_rank=24, rope_dim=8, q_rank=20, value_dim=12),
            (20 + 2 * 24 + 24 + 8 + 2 * 28 + 32, 24),
            2,
        ),
    ],
    ids=str,
)
def test_the_widths_of_an_attention_decide_what_a_layer_keeps(attention, widths, score_heads):
    products, output = widths
    tokens, layers, mlp = 8 * 32, 2, 4 * 32 + 32
    kept = {
        remat: _plan(model__attention=attention, model__attention_kernel='xla', model__remat=remat)
        for remat in ('none', 'attention', 'full', 'dots')
    }
    kept = {remat: plan.activations / tokens for remat, plan in kept.items()}
    assert kept['attention'] - kept['full'] == layers * 4 * output
    assert kept['dots'] - kept['full'] == layers * 4 * (products + mlp)
    norms = 4 * (7 * 32 + 4 * 4 * 32)
    one_layer = 4 * (32 + products + mlp + output) + norms + 8 * score_heads * 32
    table = 128 * 32 * 8 / tokens
    assert kept['none'] - table == layers * one_layer


def test_every_family_of_savers_needs_less_from_member_to_member():
    program, config = _program(mesh={'data': 4})
    families = memory_savers(program, config)
    assert {key for family in families for each in family for key in each} == {
        *(
            'train.grad_accumulation',
            'model.execution.remat',
            'mesh.data',
            'mesh.fsdp',
            'train.batch_size',
        ),
    }
    needed = estimate_memory(program, config).activations
    for family in families:
        plans = [
            estimate_memory(candidate, changed).activations
            for _, changed, candidate in fitting(program, config, family, limit=1e12)
        ]
        assert plans == sorted(plans, reverse=True), family
        assert plans[-1] < needed


def test_only_what_the_formula_thinks_to_fit_is_proposed():
    program, config = _program(model__num_layers=12)
    family = [{'model.execution.remat': str(remat)} for remat in REMAT_BY_MEMORY]
    plans = {
        str(remat): _plan(model__num_layers=12, model__remat=remat).total
        for remat in REMAT_BY_MEMORY
    }
    found = list(fitting(program, config, family, limit=plans['dots']))
    assert [each[0]['model.execution.remat'] for each in found] == ['dots', 'attention', 'full']
    assert [str(each[1].model.remat) for each in found] == ['dots', 'attention', 'full']


def test_overrides_keep_everything_else():
    _, config = _program(train__num_tokens=100_000)
    changed = with_overrides(config, {'train.batch_size': 4, 'model.execution.remat': 'full'})
    assert changed.train.num_steps == config.train.num_steps
    assert changed.model == dataclasses.replace(config.model, remat=Remat.FULL)
    assert changed.train.batch_size == 4
    assert format_overrides({'train.batch_size': 4}) == '--config.train.batch_size=4'


@pytest.mark.parametrize(
    'variable,gib',
    [('', 60), ('XLA_CLIENT_MEM_FRACTION', 76), ('XLA_PYTHON_CLIENT_MEM_FRACTION', 76)],
)
def test_the_share_of_a_gpu_that_jax_takes(variable, gib, monkeypatch):
    for name in ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, '.95')
    gpu = types.SimpleNamespace(device_kind='NVIDIA H100 80GB HBM3', platform='gpu')
    assert memory_limit(gpu) == gib * 2**30
    assert memory_limit(types.SimpleNamespace(device_kind='TPU v4', platform='tpu')) == 32 * 2**30


def test_an_error_of_a_device_becomes_advice():
    program, config = _program()
    with pytest.raises(UserError) as caught, explain_out_of_memory(program, config):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.')
    message = str(caught.value)
    assert '\n' not in message
    assert message.startswith('out of memory on cpu: a step needs about ')
    assert '(parameters 0.00, optimizer state 0.00, ' in message
    assert 'try --config.train.grad_accumulation=' in message
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)


def test_other_errors_of_a_device_stay_what_they_are():
    program, config = _program()
    error = jax.errors.JaxRuntimeError('INTERNAL: the cable fell out')
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match='cable'),
        explain_out_of_memory(program, config),
    ):
        raise error


def test_a_run_that_dies_of_memory_says_what_to_change(tmp_path, monkeypatch, capsys):
    def advance(*_):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

    monkeypatch.setattr(Program, 'advance', advance)
    assert main([f'--config={TINY}', f'--workdir={tmp_path}', '--config.sample.every=0']) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if 'error: ' in line]
    assert 'out of memory on cpu' in line and 'try --config.train.grad_accumulation=4' in line
    gpt = GPT(vocab_size=300, num_layers=1, num_heads=2, d_model=32, max_seq_len=32)
    with pytest.raises(UserError, match='out of memory on cpu'):
        gpt.fit('a text that is long enough to train on ' * 200, steps=1, batch_size=8)
