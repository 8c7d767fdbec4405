"""Small models of every architecture, with random biases and scales, and what is seen in them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.inspector import Inspection, Inspector
from gpt_jax.model.gpt import abstract_params
from gpt_jax.tokenizer import TokenizerConfig, make_tokenizer
from tests.model_configs import make_config

VARIATIONS = {
    'gpt2': {},
    'llama': dict(position='rope', norm='rmsnorm', mlp='swiglu', num_kv_heads=2, use_bias=False),
    'post-norm, windows': dict(norm_placement='post', window_pattern=(3, 0)),
    'sandwich, caps': dict(norm_placement='sandwich', attention_soft_cap=3.0, position='rope'),
    'parallel': dict(parallel_residual='one_norm', position='alibi', tie_embeddings=False),
    'latent': dict(attention='latent', position='rope', num_kv_heads=0),
    'differential': dict(attention='differential', position='rope'),
    'experts': dict(mlp='mixture_of_experts'),
    'attention only': dict(mlp='none', position='rope'),
    'attention only, then MLP': dict(layer_kinds=({'mlp': 'none'}, {})),
    'kinds of layers': dict(layer_kinds=({'mlp': 'mixture_of_experts'}, {'norm': 'rmsnorm'})),
}
# More norms and biases around the parts whose sum is a logit.
SUMS = {
    'output norms': dict(norm_placement='output'),
    'sandwich, zero-centred, capped': VARIATIONS['llama']
    | dict(norm_placement='sandwich', norm_zero_centered=True, output_soft_cap=50.0),
    'sandwich, LayerNorm': dict(norm_placement='sandwich', use_bias=False),
    'parallel, no final norm': VARIATIONS['parallel']
    | dict(final_norm=False, scale_embedding=True),
    'output bias alone': VARIATIONS['llama'] | dict(attention=dict(output_bias=True)),
    'latent, wide values': dict(attention=dict(_type='latent', value_dim=6)),
}
TOKENS = (3, 1, 4, 1, 5, 9, 2, 6)


@functools.cache
def make_inspector(name: str) -> Inspector:
    """An inspector of a model whose parameters all differ from their initial values."""
    config = make_config(**(VARIATIONS | SUMS)[name])
    random = np.random.default_rng(0)

    def draw(path, leaf):
        starts_at_1 = path[-1].key == 'scale' and not config.norm_zero_centered
        return jnp.asarray(0.3 * random.normal(size=leaf.shape) + starts_at_1, jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, nn.unbox(abstract_params(config)))
    return Inspector(config, params, make_tokenizer(TokenizerConfig(), tuple))


@functools.cache
def inspect(name: str) -> Inspection:
    """All points of such a model for TOKENS."""
    return make_inspector(name).inspect(TOKENS)
