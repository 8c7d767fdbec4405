"""The Phi-3 family: Phi3ForCausalLM.

Microsoft 2024, https://arxiv.org/abs/2404.14219: a Llama whose query, key and value are one matrix,
as are the MLP's gate and up-projection. Its longrope scaling is refused.
"""

from gpt_jax.weights.config_parts import DerivedHeadDim, Key, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.layer_parts import Window
from gpt_jax.weights.llama import ACTIVATION, FIXED, KV_HEADS, SIZES, TENSORS, TIED

_LAYER = 'model.layers.{layer}.'
_SPLIT = ('q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj', 'q_norm', 'k_norm')
PHI3 = DescribedFamily(
    model_type='phi3',
    architecture='Phi3ForCausalLM',
    fixed=FIXED,
    parts=(
        *SIZES,
        KV_HEADS,
        DerivedHeadDim(),
        ACTIVATION,
        Key('rms_norm_eps', 'norm_epsilon', float, 1e-5),
        Key('resid_pdrop', 'dropouts.residual', float, 0.0),
        TIED,
        Window(),
        Rope(kinds=('default',), fraction='partial_rotary_factor'),
    ),
    tensors={key: value for key, value in TENSORS.items() if not key.endswith(_SPLIT)}
    | {
        f'{_LAYER}self_attn.qkv_proj': tuple(
            f'blocks/attention/{name}' for name in ('query', 'key', 'value')
        ),
        f'{_LAYER}mlp.gate_up_proj': ('blocks/mlp/gate', 'blocks/mlp/up'),
    },
    # longrope's, a dropout that transformers does not apply, and code for old versions.
    inert=('original_max_position_embeddings', 'embd_pdrop', 'auto_map'),
)
