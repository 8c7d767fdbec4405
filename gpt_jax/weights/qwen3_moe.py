"""The Qwen3 family with a mixture of experts: Qwen3MoeForCausalLM.

Qwen Team 2025, https://arxiv.org/abs/2505.09388: Qwen3 whose layers have experts, or some of them.
"""

from gpt_jax.model.config import QKNorm
from gpt_jax.model.mlp import MixtureOfExperts
from gpt_jax.weights.config_parts import Key, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.expert_parts import (
    INERT,
    NORMALIZED,
    AnyDenseLayers,
    BalanceLoss,
    expert_tensors,
)
from gpt_jax.weights.layer_parts import Window
from gpt_jax.weights.llama import (
    ACTIVATION,
    ATTENTION_BIAS,
    EPSILON,
    FIXED,
    HEAD_DIM,
    KV_HEADS,
    SIZES,
    TENSORS,
    TIED,
)

QWEN3_MOE = DescribedFamily(
    model_type='qwen3_moe',
    architecture='Qwen3MoeForCausalLM',
    mlp=MixtureOfExperts,
    fixed=FIXED | {'attention.qk_norm': QKNorm.HEAD},
    parts=(
        *SIZES,
        Key('moe_intermediate_size', 'mlp.d_expert', int, 768),
        Key('num_experts', 'mlp.num_experts', int, 128, alias='num_local_experts'),
        Key('num_experts_per_tok', 'mlp.experts_per_token', int, 8),
        NORMALIZED,
        BalanceLoss(),
        KV_HEADS,
        HEAD_DIM,
        ACTIVATION,
        EPSILON,
        TIED,
        ATTENTION_BIAS,
        Window(default=4096, switched=True),
        AnyDenseLayers(),
        Rope(),
    ),
    tensors=TENSORS | expert_tensors('mlp', gate='gate_proj', up='up_proj', down='down_proj'),
    inert=(*INERT, 'max_window_layers'),  # all layers slide, or none
)
