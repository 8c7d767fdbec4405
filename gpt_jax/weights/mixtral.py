"""The Mixtral family: MixtralForCausalLM.

Jiang et al. 2024, https://arxiv.org/abs/2401.04088: Mistral with a mixture of experts, of which
each token uses two. The gates are a softmax over the chosen experts.
"""

from gpt_jax.model.mlp import MixtureOfExperts
from gpt_jax.weights.config_parts import Key, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.expert_parts import INERT, BalanceLoss, expert_tensors
from gpt_jax.weights.layer_parts import Window
from gpt_jax.weights.llama import ACTIVATION, FIXED, HEAD_DIM, KV_HEADS, SIZES, TENSORS, TIED

MIXTRAL = DescribedFamily(
    model_type='mixtral',
    architecture='MixtralForCausalLM',
    mlp=MixtureOfExperts,
    fixed=FIXED | {'mlp.normalize_gates': True},
    parts=(
        *(part for part in SIZES if part.name != 'intermediate_size'),
        Key('intermediate_size', 'mlp.d_expert', int),
        Key('num_local_experts', 'mlp.num_experts', int, 8),
        Key('num_experts_per_tok', 'mlp.experts_per_token', int, 2),
        BalanceLoss(),
        KV_HEADS,
        HEAD_DIM,
        ACTIVATION,
        Key('rms_norm_eps', 'norm_epsilon', float, 1e-5),
        TIED,
        Window(),
        Rope(default_base=1e6),
    ),
    tensors=TENSORS | expert_tensors('block_sparse_moe', gate='w1', up='w3', down='w2'),
    inert=INERT,
)
