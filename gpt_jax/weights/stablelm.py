"""The StableLM family: StableLmForCausalLM.

Bellagente et al. 2024, https://arxiv.org/abs/2402.17834: a Llama with LayerNorm, and rotary
positions on a part of each head. The norms of queries and keys (`qk_layernorm`) are refused.
"""

from gpt_jax.model.config import NormKind, ParallelResidual
from gpt_jax.weights.config_parts import DerivedHeadDim, Key, Require, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.llama import ACTIVATION, FIXED, KV_HEADS, SIZES, TENSORS, TIED

STABLELM = DescribedFamily(
    model_type='stablelm',
    architecture='StableLmForCausalLM',
    fixed=FIXED | {'norm': NormKind.LAYERNORM, 'norm_bias': True},
    parts=(
        *SIZES,
        KV_HEADS,
        DerivedHeadDim(),
        ACTIVATION,
        Key('layer_norm_eps', 'norm_epsilon', float, 1e-5),
        Key('use_qkv_bias', 'attention.qkv_bias', bool, False),
        Key(
            'use_parallel_residual',
            'parallel_residual',
            {False: ParallelResidual.OFF, True: ParallelResidual.ONE_NORM},
        ),
        Key('hidden_dropout', 'dropouts.residual', float, 0.0),
        TIED,
        Rope(fraction='partial_rotary_factor', default_fraction=0.25),
        Require('qk_layernorm', False),
        Require('rotary_scaling_factor', 1.0),
    ),
    tensors=TENSORS,
    inert=('num_heads', 'auto_map'),  # repeats num_attention_heads; code for old versions
)
