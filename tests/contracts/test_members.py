"""What holds for every attention and every MLP, also for those that are not of this project."""

import dataclasses
import typing

import jax
import numpy as np
import pytest

from gpt_jax.api import GPT
from gpt_jax.config import finalize
from gpt_jax.config_tree import choices
from gpt_jax.errors import UserError
from gpt_jax.inspector import points_of
from gpt_jax.model.attention import Attention
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.model.mlp import MLP
from gpt_jax.optim import Adafactor, AdamW, Lion, Muon
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parameter import Role
from gpt_jax.tokenizer import TokenizerConfig, make_tokenizer
from gpt_jax.train.flops import train_flops_per_token
from gpt_jax.train.memory import estimate_memory
from gpt_jax.train.program import make_program
from tests.contracts.own_members import Scaled, Tempered
from tests.contracts.test_models import check, check_on_a_mesh
from tests.tiny_config import get_config
from tests.train.test_flops import traced_flops
from tests.train.test_resume import check_resumes

OWN = dict(attention='tempered', mlp='scaled')
MEMBERS = {
    **{name: dict(attention=name) for name in choices(Attention)},
    'dense': dict(mlp='dense'),
    'mixture_of_experts': dict(mlp='mixture_of_experts', use_bias=False),
    'none': dict(mlp='none'),
    'own': OWN,
}


@pytest.fixture(autouse=True)
def own_members(monkeypatch):
    """Lists the two, each with one line."""
    fields = ModelConfig.__dataclass_fields__
    monkeypatch.setattr(fields['attention'], 'type', Attention | Tempered)
    monkeypatch.setattr(fields['mlp'], 'type', MLP | Scaled)


def test_every_member_is_here():
    members = {*typing.get_args(Attention), *typing.get_args(MLP)}
    assert len(members) + 1 == len(MEMBERS)


def test_own_members_keep_the_contract_of_models():
    check(OWN | dict(position='none'))
    check_on_a_mesh(OWN | dict(position='none'))


def program_of(optimizer=None, **changes):
    config = get_config('adamw')
    config.optimizer = optimizer or AdamW()
    config.model.dropouts.residual = config.model.dropouts.attention = 0.0
    config.train.grad_accumulation = 1
    for name, value in changes.items():
        setattr(config.model, name, value)
    config = finalize(config, vocab_size=128)
    return config, make_program(config, make_mesh(config.mesh))


@pytest.mark.parametrize('changes', MEMBERS.values(), ids=MEMBERS)
def test_resumes_bit_for_bit(changes, tmp_path):
    config, _ = program_of(**changes)
    check_resumes(config, tmp_path)


@pytest.mark.parametrize('changes', MEMBERS.values(), ids=MEMBERS)
def test_is_exported_whole_or_refused(changes, tmp_path):
    """Its own format has every parameter; transformers' has, or the export is an error."""
    sizes = dict(vocab_size=384, num_layers=2, num_heads=4, d_model=32, max_seq_len=16)
    tokenizer = make_tokenizer(TokenizerConfig(), tuple)
    gpt = GPT(**sizes, position='rope', norm='rmsnorm', tokenizer=tokenizer, **changes)
    gpt.export(tmp_path / 'own', format='safetensors')
    read = GPT.from_pretrained(tmp_path / 'own')
    jax.tree.map(np.testing.assert_array_equal, read.params, gpt.params)
    try:
        gpt.export(tmp_path / 'hf', format='hf')
    except UserError as error:
        assert 'no family of transformers' in str(error) or 'no place for' in str(error)
    else:
        read = GPT.from_pretrained(tmp_path / 'hf')
        jax.tree.map(np.testing.assert_array_equal, read.params, gpt.params)


def test_flops_memory_and_groups_are_derived():
    config, program = program_of(**OWN, use_bias=False)
    formula = train_flops_per_token(config.model, length=config.model.max_seq_len)
    assert formula == pytest.approx(traced_flops(config), rel=0.02)
    assert estimate_memory(program, config).total > 0
    groups = parameter_groups(config.model)
    own = [path for path in groups.declared if path.endswith(('heat', 'mlp/scale'))]
    assert [groups.role(path) for path in own] == [Role.VECTOR] * 2


@pytest.mark.parametrize('changes', MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_memory_is_estimated(changes, remat):
    config, program = program_of(**changes, remat=remat)
    plan = estimate_memory(program, config)
    assert 0 < plan.activations < plan.total


def test_points_of_own_members():
    config, _ = program_of(**OWN)
    points = points_of(config.model, 5)
    heads = points['blocks.1.attention.heads']
    assert heads.dims == ('position', 'head', 'head_dim')
    assert points['blocks.1.attention.weights'].shape == (heads.shape[1], 5, 5)


@pytest.mark.parametrize('kind', [Muon, Adafactor, Lion])
def test_every_optimizer_trains_them(kind):
    _, program = program_of(kind(), **OWN)
    batch = {'tokens': np.random.default_rng(0).integers(0, 60, (8, 33), dtype=np.int32)}
    state, first = program.advance(program.init(jax.random.key(0)), [batch])
    before = jax.device_get(state.params)
    state, _ = program.advance(state, [batch])
    assert np.isfinite(first['loss'])
    moved = jax.tree.map(lambda a, b: bool((a != np.asarray(b)).any()), before, state.params)
    assert all(jax.tree.leaves(moved))


def test_members_are_dataclasses_with_their_own_knobs():
    for member in (*typing.get_args(Attention), *typing.get_args(MLP)):
        assert dataclasses.is_dataclass(member) and member.__doc__
