"""The GPT-NeoX family, such as Pythia: GPTNeoXForCausalLM.

Black et al. 2022, https://arxiv.org/abs/2204.06745: LayerNorm, attention and MLP side by side, and
rotary positions on a part of each head. Queries, keys and values alternate head by head in one
matrix.
"""

from gpt_jax.model.config import MLPKind, NormKind, NormPlacement, ParallelResidual, PositionKind
from gpt_jax.weights.config_parts import DerivedHeadDim, Key, Rope, Same
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.llama import SIZES, TIED

_LAYER = 'gpt_neox.layers.{layer}.'
_QUERY_KEY_VALUE = f'{_LAYER}attention.query_key_value'
GPT_NEOX = DescribedFamily(
    model_type='gpt_neox',
    architecture='GPTNeoXForCausalLM',
    fixed={
        'position': PositionKind.ROPE,
        'norm': NormKind.LAYERNORM,
        'norm_placement': NormPlacement.PRE,
        'final_norm': True,
        'use_bias': False,  # attention_bias decides for attention, norms and MLP have biases
        'norm_bias': True,
        'mlp.bias': True,
        'attention_soft_cap': 0.0,
        'output_soft_cap': 0.0,
    },
    parts=(
        *SIZES,
        Same('num_kv_heads', 'num_heads'),
        DerivedHeadDim(),
        Key(
            'hidden_act',
            'mlp.activation',
            {
                'gelu': MLPKind.GELU,
                'gelu_new': MLPKind.GELU_TANH,
                'gelu_fast': MLPKind.GELU_TANH,
                'gelu_pytorch_tanh': MLPKind.GELU_TANH,
                'relu': MLPKind.RELU,
            },
        ),
        Key(
            'use_parallel_residual',
            'parallel_residual',
            {True: ParallelResidual.TWO_NORMS, False: ParallelResidual.OFF},
        ),
        Key('attention_bias', ('attention.qkv_bias', 'attention.output_bias'), bool, True),
        Key('layer_norm_eps', 'norm_epsilon', float, 1e-5),
        Key('hidden_dropout', 'dropouts.residual', float, 0.0),
        TIED,
        Rope(base='rotary_emb_base', fraction='rotary_pct', default_fraction=0.25),
    ),
    tensors={
        'gpt_neox.embed_in': 'embedding',
        _QUERY_KEY_VALUE: tuple(f'blocks/attention/{name}' for name in ('query', 'key', 'value')),
        f'{_LAYER}attention.dense': 'blocks/attention/output',
        f'{_LAYER}mlp.dense_h_to_4h': 'blocks/mlp/up',
        f'{_LAYER}mlp.dense_4h_to_h': 'blocks/mlp/down',
        f'{_LAYER}input_layernorm': 'blocks/attention_norm',
        f'{_LAYER}post_attention_layernorm': 'blocks/mlp_norm',
        'gpt_neox.final_layer_norm': 'final_norm',
        'embed_out': 'output',
    },
    by_head=(_QUERY_KEY_VALUE,),
    # Dropouts of other heads and of old versions.
    inert=('classifier_dropout', 'attention_probs_dropout_prob', 'hidden_dropout_prob'),
    # Masks and frequencies, which old files store.
    without_weights=r'.*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)',
)
