"""The values that each policy keeps, seen by what the backward pass computes again."""

import collections

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax._src.cudnn.fused_attention_stablehlo import _dot_product_attention_fwd_p_wrapper

from gpt_jax.model.config import AttentionKernel, Kernels, Remat
from gpt_jax.model.gpt import GPT, init_params
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.model.remat import REMAT_KEEPS, remat_policy
from tests.model_configs import make_config


def operations(remat, **changes):
    """Counts each primitive in the gradient of one layer."""
    config = make_config(num_layers=1, remat=remat, **changes)
    params = to_executed(nn.unbox(init_params(config, jax.random.key(0))), config, scan=True)
    tokens = jnp.zeros((2, 8), jnp.int32)

    def loss(params):
        return GPT(config).apply({'params': params}, tokens, method='hidden')[0].sum()

    lowered = jax.jit(jax.grad(loss)).lower(params).as_text()
    words = ('stablehlo.dot_general', 'stablehlo.tanh', 'stablehlo.rsqrt')
    return collections.Counter({word.split('.')[1]: lowered.count(word) for word in words})


# Of q, k, v, scores, weights @ v, output, up and down, the last is never needed again. With this
# kernel the scores always are: its softmax statistics have no name.
PRODUCTS_THAT_RUN_AGAIN = {
    Remat.NONE: 0,
    Remat.FULL: 7,
    Remat.ATTENTION: 6,
    Remat.DOTS: 2,
    Remat.DOTS_AND_ATTENTION: 1,
}


@pytest.mark.parametrize('remat', Remat)
def test_the_products_that_run_again(remat):
    again = operations(remat) - operations(Remat.NONE)
    assert again['dot_general'] == PRODUCTS_THAT_RUN_AGAIN[remat]
    assert (again['tanh'] > 0) == (again['rsqrt'] > 0) == (remat != Remat.NONE)


def test_a_gated_mlp_keeps_its_third_product():
    again = operations(Remat.DOTS, mlp='swiglu') - operations(Remat.NONE, mlp='swiglu')
    assert again['dot_general'] == PRODUCTS_THAT_RUN_AGAIN[Remat.DOTS]


@pytest.mark.parametrize('remat', REMAT_KEEPS)
def test_splash_attention_is_kept_with_its_statistics(remat, capsys):
    config = make_config(num_layers=1, remat=remat)
    model = GPT(config, kernels=Kernels(attention=AttentionKernel.SPLASH))
    params = to_executed(nn.unbox(init_params(config, jax.random.key(0))), config, scan=True)
    tokens = jnp.zeros((2, 8), jnp.int32)
    jax.ad_checkpoint.print_saved_residuals(
        lambda params: model.apply({'params': params}, tokens, method='hidden')[0].sum(), params
    )
    kept = [line.split()[0] for line in capsys.readouterr().out.splitlines() if 'splash' in line]
    output_and_statistics = ['f32[2,4,128,8]', 'f32[2,4,128]']
    assert kept == (output_and_statistics if 'attention' in REMAT_KEEPS[remat] else [])


def test_cudnn_attention_is_kept_by_its_primitive():
    keeping = {
        remat for remat in REMAT_KEEPS if remat_policy(remat)(_dot_product_attention_fwd_p_wrapper)
    }
    assert keeping == {Remat.ATTENTION, Remat.DOTS_AND_ATTENTION}


def test_every_policy_is_listed():
    assert set(REMAT_KEEPS) == set(Remat) - {Remat.NONE}
