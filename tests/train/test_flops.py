"""The formulas against the matrix products that the traced training step really holds."""

import math

import jax
import numpy as np
import pytest

from gpt_jax.config import RunConfig, finalize
from gpt_jax.model.attention import Differential, Latent
from gpt_jax.model.config import Remat
from gpt_jax.model.mlp import NoMLP
from gpt_jax.model.remat import REMAT_KEEPS
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.flops import recomputed_flops_per_token, train_flops_per_token
from gpt_jax.train.program import make_program
from tests.tiny_config import get_config

# XLA's attention does not pad the narrower of keys and values. The wide MLP keeps the share of the
# norms, whose weights the formula counts, below the tolerance.
UNPADDED = {'attention_kernel': 'xla', 'd_ff': 256}
VARIATIONS = {
    'plain': {},
    'layers in a scan': {'scan_layers': 'on'},
    'post-norm': {'norm_placement': 'post'},
    'gated, fewer heads': {'mlp': 'swiglu', 'num_kv_heads': 1, 'head_dim': 8},
    'differential': {'attention': Differential(), **UNPADDED},
    'latent': {'attention': Latent(kv_rank=24, rope_dim=8), **UNPADDED},
    'latent, all ranks': {
        'attention': Latent(kv_rank=24, q_rank=20, rope_dim=8, value_dim=12),
        **UNPADDED,
        'position': 'rope',
    },
    'attention only': {'mlp': NoMLP()},
    'own output layer': {'tie_embeddings': False, 'position': 'learned', 'final_norm': False},
}


def _config(**model) -> RunConfig:
    config = get_config()
    config.train.grad_accumulation = 1
    config.model.dropouts.residual = config.model.dropouts.attention = 0.0
    config.model.use_bias = False
    for name, value in model.items():
        setattr(config.model, name, value)
    return finalize(config, vocab_size=128)


def _products(jaxpr, times: int = 1) -> int:
    """FLOPs of the matrix products in a jaxpr, loops counted in full."""
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lengths) * times
        inner = times * (params['length'] if equation.primitive.name == 'scan' else 1)
        if equation.primitive.name == 'cond':  # one of its branches runs
            branches = {_products(branch.jaxpr, inner) for branch in params['branches']}
            assert len(branches) == 1
            total += branches.pop()
            continue
        for value in jax.tree.leaves(list(params.values())):
            value = getattr(value, 'jaxpr', value)
            if hasattr(value, 'eqns'):
                total += _products(value, inner)
    return total


def traced_flops(config: RunConfig) -> float:
    """FLOPs a token of the training step's matrix products."""
    program = make_program(config, make_mesh(config.mesh))
    shape = (config.train.batch_size, config.model.max_seq_len + 1)
    batch = {'tokens': jax.ShapeDtypeStruct(shape, np.int32)}
    traced = program.train_step.__wrapped__.trace(program.abstract_state, batch, program.numbers)
    return _products(traced.jaxpr.jaxpr) / (config.train.batch_size * config.model.max_seq_len)


@pytest.mark.parametrize('model', VARIATIONS.values(), ids=VARIATIONS.keys())
def test_the_formula_counts_the_products(model):
    config = _config(**model)
    formula = train_flops_per_token(config.model, length=32)
    # The formula counts the few weights of the norms too, as is customary.
    assert traced_flops(config) == pytest.approx(formula, rel=0.01)
    assert recomputed_flops_per_token(config.model, length=32) == 0


@pytest.mark.parametrize('remat', [each for each in Remat if each != Remat.NONE])
@pytest.mark.parametrize('model', VARIATIONS.values(), ids=VARIATIONS.keys())
def test_recomputation_counts_the_products_that_remat_adds(model, remat):
    plain, config = _config(**model), _config(**model, remat=remat)
    added = traced_flops(config) - traced_flops(plain)
    formula = recomputed_flops_per_token(config.model, length=32)
    if 'attention' in REMAT_KEEPS[Remat(remat)]:  # the kernels that run here have more to keep
        formula += config.model.num_layers * _recomputed_by_kernel(config.model)
    assert added == pytest.approx(formula, rel=0.01)


def _recomputed_by_kernel(model) -> float:
    """FLOPs per token and layer that a kernel repeats although its output is kept."""
    if model.execution.attention_kernel == 'xla':  # the scores
        return 2 * model.num_heads * model.attention.score_width(model) * 32
    return model.attention.flops(model, 32)


def test_a_window_counts_its_width():
    whole, narrow = _config(), _config(window_pattern=(8, 0))
    difference = train_flops_per_token(whole.model, length=32) - train_flops_per_token(
        narrow.model, length=32
    )
    assert difference == 12 * 2 * 16 * (32 - 8)
