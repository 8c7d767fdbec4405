"""The OLMo 2 family: Olmo2ForCausalLM.

OLMo Team 2024, https://arxiv.org/abs/2501.00656: a Llama whose norms follow attention and MLP
instead of coming before them, with queries and keys normalized over all heads.
"""

from gpt_jax.model.config import NormPlacement, QKNorm
from gpt_jax.weights.config_parts import DerivedHeadDim, Key, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.llama import ACTIVATION, ATTENTION_BIAS, FIXED, KV_HEADS, SIZES, TENSORS, TIED

_LAYER = 'model.layers.{layer}.'
OLMO2 = DescribedFamily(
    model_type='olmo2',
    architecture='Olmo2ForCausalLM',
    fixed=FIXED | {'norm_placement': NormPlacement.OUTPUT, 'attention.qk_norm': QKNorm.FULL},
    parts=(
        *SIZES,
        KV_HEADS,
        DerivedHeadDim(),
        ACTIVATION,
        Key('rms_norm_eps', 'norm_epsilon', float, 1e-5),
        TIED,
        ATTENTION_BIAS,
        Rope(),
    ),
    tensors=TENSORS
    | {
        f'{_LAYER}post_attention_layernorm': 'blocks/attention_post_norm',
        f'{_LAYER}post_feedforward_layernorm': 'blocks/mlp_post_norm',
    },
)
