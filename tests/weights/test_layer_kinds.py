"""Weights whose layers differ or have experts: placement on several devices, and refusals."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.errors import UserError
from gpt_jax.model.config import QKNorm
from gpt_jax.model.mlp import Dense, MixtureOfExperts
from gpt_jax.model.mlp.experts import Balance
from gpt_jax.weights import load_params, open_source
from gpt_jax.weights.export import choose_family
from tests.weights.random_source import LLAMA, make_model, weight_shapes, write_folder

QWEN3_MOE = LLAMA | dict(
    mlp=MixtureOfExperts(num_experts=4, d_expert=24),
    attention=dict(qk_norm='head'),
    layer_kinds=({}, {'mlp': 'swiglu'}, {}),
)


def test_devices_load_their_own_experts(tmp_path):
    config, params = write_folder(tmp_path, **QWEN3_MOE)
    source = open_source(str(tmp_path))
    assert source.model.mlps == config.mlps
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('experts', 'columns'))
    split = NamedSharding(mesh, PartitionSpec(None, 'experts', None, 'columns'))
    whole = NamedSharding(mesh, PartitionSpec())

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        is_experts = leaf.ndim == 4 and leaf.shape[1] == 4
        sharding = split if is_experts else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    placed = load_params(source, jax.tree.map(place, weight_shapes(source.model)))
    assert placed['blocks_0']['mlp']['up'].sharding == split
    for stack in ('blocks_0', 'blocks_1'):
        jax.tree.map(np.testing.assert_array_equal, placed[stack], params[stack])


DEEPSEEK_V2 = LLAMA | dict(
    mlp=MixtureOfExperts(num_experts=4, d_expert=24, normalize_gates=False, shared_experts=1),
    attention=dict(_type='latent', kv_rank=12, rope_dim=4),
    num_kv_heads=0,
    norm_epsilon=1e-6,
)
REFUSED = {
    'positions of layers': ('mistral', LLAMA, [{'rope': False}], 'rope=False in mistral'),
    'windows of layers': ('mistral', LLAMA, [{'window': 4}, {}], 'with windows of 0, 4'),
    'norm of layers': ('qwen3_moe', QWEN3_MOE, [{'norm': 'layernorm'}], 'norm=layernorm'),
    'MLP of layers': ('qwen3_moe', QWEN3_MOE, [{'mlp': 'gelu'}], 'mlp=Dense.*gelu'),
    'kinds of layers': ('olmoe', QWEN3_MOE, [{'mlp': 'swiglu'}], 'layer_kinds='),
    'router bias': (
        'qwen3_moe',
        QWEN3_MOE | dict(mlp=MixtureOfExperts(balance=Balance.BIAS)),
        [],
        'mlp.balance=bias',
    ),
    'shared experts': (
        'qwen3_moe',
        QWEN3_MOE | dict(mlp=MixtureOfExperts(shared_experts=1)),
        [],
        'mlp.shared_experts=1',
    ),
    'dense after experts': ('deepseek_v2', DEEPSEEK_V2, [{}, {'mlp': 'swiglu'}], 'layer 1 after'),
    'no shared experts': (
        'deepseek_v2',
        DEEPSEEK_V2 | dict(mlp=MixtureOfExperts(normalize_gates=False)),
        [],
        'mlp.shared_experts=0',
    ),
    'normalized gates': (
        'deepseek_v2',
        DEEPSEEK_V2 | dict(mlp=MixtureOfExperts(shared_experts=1)),
        [],
        'mlp.normalize_gates=True',
    ),
    'epsilon of latents': (
        'deepseek_v2',
        DEEPSEEK_V2 | dict(norm_epsilon=1e-5),
        [],
        'norm_epsilon=1e-05',
    ),
    'dense layers, experts in some': ('qwen3_moe', QWEN3_MOE | dict(mlp=Dense()), [], 'mlp=dense'),
}


@pytest.mark.parametrize(('family', 'values', 'kinds', 'message'), REFUSED.values(), ids=REFUSED)
def test_export_refuses_by_name(family, values, kinds, message):
    model = make_model(**values | dict(layer_kinds=tuple(kinds)))
    if family == 'olmoe':
        attention = dataclasses.replace(model.attention, qk_norm=QKNorm.FULL)
        model = dataclasses.replace(model, attention=attention)
    with pytest.raises(UserError, match=message):
        choose_family(model, family)


def test_gemma3_refuses_other_positions_of_layers():
    values = LLAMA | dict(
        mlp='geglu',
        attention=dict(qk_norm='head', query_pre_attn_scalar=8.0),
        norm_placement='sandwich',
        norm_zero_centered=True,
        scale_embedding=True,
    )
    local = {'window': 4, 'rope_base': 500.0}
    for kinds, message in (
        ([local, {'rope_base': 700.0}], 'rope_base=700.0 and no window'),
        ([local, {'window': 4}], 'rope_base=10000.0 and 500.0'),
        ([local | {'rope_scaling': 2.0}, {}], 'a window and rope_scaling=2.0'),
    ):
        with pytest.raises(UserError, match=message):
            choose_family(make_model(**values | dict(layer_kinds=tuple(kinds))), 'gemma3_text')
    assert choose_family(make_model(**values | dict(layer_kinds=(local, {}))), 'gemma3_text')
