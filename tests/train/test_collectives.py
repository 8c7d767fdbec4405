"""The collectives of a step: weights under FSDP, tokens between experts, never the batch."""

import collections
import re

import numpy as np
import pytest

from gpt_jax.config import finalize
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.program import make_program
from tests.tiny_config import get_config

COLLECTIVE = re.compile(
    r'= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\('
)
BATCH, LENGTH, WIDTH, MLP = 40, 48, 64, 256  # told apart by their sizes, also in parts


def compile_step(*, model=None, **mesh):
    config = get_config('adamw')
    for name, value in (model or {}).items():
        setattr(config.model, name, value)
    config.model.d_model, config.model.d_ff, config.model.num_heads = WIDTH, MLP, 4
    config.model.max_seq_len, config.train.batch_size = LENGTH, BATCH
    config.train.grad_accumulation = config.train.steps_per_call = 1
    config.model.dropouts.residual = config.model.dropouts.attention = 0.0
    for axis, size in mesh.items():
        setattr(config.mesh, axis, size)
    config = finalize(config, vocab_size=65)
    program = make_program(config, make_mesh(config.mesh))
    tokens = np.zeros((BATCH, LENGTH + 1), np.int32)
    return program.lower(program.abstract_state, [{'tokens': tokens}]).compile()


def collectives(compiled) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and shape of everything that is exchanged."""
    found = []
    for shapes, kind in COLLECTIVE.findall(compiled.as_text()):
        for shape in re.findall(r'\w+\[([\d,]*)\]', shapes):
            found.append((kind, tuple(int(size) for size in shape.split(',') if size)))
    return found


def test_fsdp_gathers_weights_and_sums_their_gradients(capfd):
    compiled = compile_step(data=1, fsdp=8)
    found = collectives(compiled)
    tokens = {BATCH, BATCH // 8, BATCH * LENGTH, BATCH * LENGTH // 8}
    assert not [shape for _, shape in found if tokens & set(shape)]
    gathered = sorted(shape for kind, shape in found if kind == 'all-gather')
    layer = [(WIDTH, WIDTH)] * 4 + [(WIDTH, MLP), (MLP, WIDTH)]
    assert gathered == sorted([*layer * 2, (LENGTH, WIDTH), (128, WIDTH)]), 'each weight once'
    assert {kind for kind, _ in found} == {'all-gather', 'all-reduce', 'reduce-scatter'}
    assert 'Involuntary full rematerialization' not in capfd.readouterr().err
    # Activations are an eighth of one device's; the parameters that are gathered come on top.
    alone = compile_step(data=1).memory_analysis().temp_size_in_bytes
    assert compiled.memory_analysis().temp_size_in_bytes < alone / 8 + 4 * 2 * 12 * WIDTH**2 * 3


@pytest.mark.parametrize('mesh', [{'data': 2, 'fsdp': 2, 'tensor': 2}, {'data': 2, 'tensor': 4}])
def test_tensor_parallelism_sums_activations_and_gathers_none(mesh, capfd):
    found = collectives(compile_step(**mesh))
    rows = BATCH * LENGTH // (mesh['data'] * mesh.get('fsdp', 1))
    assert ('all-reduce', (rows, WIDTH)) in found
    assert not [shape for kind, shape in found if kind == 'all-gather' and rows in shape]
    assert not [shape for kind, shape in found if kind == 'all-to-all']
    assert 'Involuntary full rematerialization' not in capfd.readouterr().err


def test_tokens_travel_to_experts_whose_weights_stay(capfd):
    experts, width, k = 8, 160, 2
    mlp = dict(_type='mixture_of_experts', num_experts=experts, d_expert=width)
    found = collectives(compile_step(data=2, expert=4, model={'num_layers': 1, 'mlp': mlp}))
    counts = collections.Counter(shape for kind, shape in found if kind == 'all-to-all')
    # Rows go and come back, forward and backward, to 4 devices; the sizes of groups go once.
    rows = (1, k * BATCH * LENGTH // 8, WIDTH)
    assert counts == {rows: 4 * 4, (1, experts // 4): 4}
    assert {kind for kind, _ in found} == {'all-to-all', 'all-reduce'}, 'nothing is gathered'
    # The gradients of a device's experts are summed over the data axis.
    weights = {shape for _, shape in found if width in shape}
    assert weights == {(experts // 4, WIDTH, width), (experts // 4, width, WIDTH)}
    assert 'Involuntary full rematerialization' not in capfd.readouterr().err
