"""The OLMoE family: OlmoeForCausalLM.

Muennighoff et al. 2024, https://arxiv.org/abs/2409.02060: a Llama with a mixture of small experts,
and queries and keys normalized over all heads.
"""

from gpt_jax.model.config import QKNorm
from gpt_jax.model.mlp import MixtureOfExperts
from gpt_jax.weights.config_parts import DerivedHeadDim, Key, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.expert_parts import INERT, NORMALIZED, BalanceLoss, expert_tensors
from gpt_jax.weights.llama import ACTIVATION, ATTENTION_BIAS, FIXED, KV_HEADS, SIZES, TENSORS, TIED

OLMOE = DescribedFamily(
    model_type='olmoe',
    architecture='OlmoeForCausalLM',
    mlp=MixtureOfExperts,
    fixed=FIXED | {'attention.qk_norm': QKNorm.FULL},
    parts=(
        *(part for part in SIZES if part.name != 'intermediate_size'),
        Key('intermediate_size', 'mlp.d_expert', int),
        Key('num_experts', 'mlp.num_experts', int, 64),
        Key('num_experts_per_tok', 'mlp.experts_per_token', int, 8),
        NORMALIZED,
        BalanceLoss(0.01),
        KV_HEADS,
        DerivedHeadDim(),
        ACTIVATION,
        Key('rms_norm_eps', 'norm_epsilon', float, 1e-5),
        TIED,
        ATTENTION_BIAS,
        Rope(),
    ),
    tensors=TENSORS | expert_tensors('mlp', gate='gate_proj', up='up_proj', down='down_proj'),
    inert=INERT,
)
