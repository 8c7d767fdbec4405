"""The GPT-2 family: GPT2LMHeadModel of transformers, and the variants of nanoGPT and minGPT.

Radford et al. 2019. Tensors have OpenAI's names. Transformers stores matrices as
`[inputs, outputs]` (Conv1D), the others as `[outputs, inputs]` (torch's Linear).
"""

from typing import Any

from gpt_jax.model.attention import GroupedQuery
from gpt_jax.model.config import (
    DropoutConfig,
    InitConfig,
    MLPKind,
    ModelConfig,
    NormKind,
    NormPlacement,
    PositionKind,
)
from gpt_jax.model.mlp import Dense
from gpt_jax.weights.config_keys import INERT_KEYS
from gpt_jax.weights.layout import TensorLayout
from gpt_jax.weights.source import ConfigReader

MODEL_TYPES = ('gpt2',)
# Old files store the causal mask.
WITHOUT_WEIGHTS = r'(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)'
_ACTIVATIONS = {
    'gelu_new': MLPKind.GELU_TANH,
    'gelu_pytorch_tanh': MLPKind.GELU_TANH,
    'gelu': MLPKind.GELU,
}
_INERT = (
    *INERT_KEYS,
    'n_special',
    'predict_special_tokens',
    'reorder_and_upcast_attn',  # affects rounding in float16 only
    'scale_attn_weights',
    'summary_activation',
    'summary_first_dropout',
    'summary_proj_to_labels',
    'summary_type',
    'summary_use_proj',
)
# Supported values by field of ModelConfig.
CAPABILITIES = {
    'position': (PositionKind.LEARNED,),
    'norm': (NormKind.LAYERNORM,),
    'norm_placement': (NormPlacement.PRE,),
    'final_norm': (True,),
    'attention': (GroupedQuery,),
    'attention.inverse_layer_scale': (False, True),
    'mlp': (Dense,),
    'mlp.activation': (MLPKind.GELU_TANH, MLPKind.GELU),
    'use_bias': (True,),
    'layer_kinds': ((),),
    'attention_soft_cap': (0.0,),
    'output_soft_cap': (0.0,),
}


def to_model(config: dict[str, Any], *, name: str) -> ModelConfig:
    """Returns the architecture that a config.json of transformers describes.

    Raises:
        UserError: a key or a value has no counterpart; the message names it.
    """
    c = ConfigReader(config, name=name)
    c.require('architectures', None, ['GPT2LMHeadModel'])
    c.require('scale_attn_weights', True)
    c.require('add_cross_attention', False)
    dropout = c.take_float('resid_pdrop', 0.1)
    c.require('embd_pdrop', dropout)
    length = c.take_int('n_positions', 1024)
    c.require('n_ctx', length)
    model = ModelConfig(
        vocab_size=c.take_int('vocab_size', 50257),
        max_seq_len=length,
        num_layers=c.take_int('n_layer', 12),
        num_heads=c.take_int('n_head', 12),
        d_model=c.take_int('n_embd', 768),
        d_ff=c.take_int('n_inner', 0),
        norm_epsilon=c.take_float('layer_norm_epsilon', 1e-5),
        mlp=_ACTIVATIONS[c.require('activation_function', *_ACTIVATIONS)],
        attention=GroupedQuery(
            inverse_layer_scale=c.take_bool('scale_attn_by_inverse_layer_idx', False)
        ),
        tie_embeddings=c.take_bool('tie_word_embeddings', True),
        init=InitConfig(std=c.take_float('initializer_range', 0.02)),
        dropouts=DropoutConfig(residual=dropout, attention=c.take_float('attn_pdrop', 0.1)),
    )
    c.finish(_INERT)
    return model


def from_model(model: ModelConfig) -> dict[str, Any]:
    """Returns transformers' config.json for an architecture within `CAPABILITIES`."""
    return {
        'architectures': ['GPT2LMHeadModel'],
        'model_type': 'gpt2',
        'vocab_size': model.vocab_size,
        'n_positions': model.max_seq_len,
        'n_layer': model.num_layers,
        'n_head': model.num_heads,
        'n_embd': model.d_model,
        'n_inner': model.d_ff,
        'layer_norm_epsilon': model.norm_epsilon,
        'activation_function': next(
            a for a, mlp in _ACTIVATIONS.items() if mlp == model.mlp.activation
        ),
        'scale_attn_by_inverse_layer_idx': model.attention.inverse_layer_scale,
        'tie_word_embeddings': model.tie_embeddings,
        'initializer_range': model.init.std,
        'resid_pdrop': model.dropouts.residual,
        'embd_pdrop': model.dropouts.residual,
        'attn_pdrop': model.dropouts.attention,
    }


def obstacle(model: ModelConfig) -> str:
    """Returns an unsupported setting that `CAPABILITIES` does not cover; '' if there is none."""
    if model.num_kv_heads != model.num_heads:
        return f'config.model.num_kv_heads={model.num_kv_heads}'
    if model.num_heads * model.head_dim != model.d_model:
        return f'config.model.head_dim={model.head_dim}'
    return ''


def layout(
    model: ModelConfig, *, prefix: str = 'transformer.', linear: bool = False
) -> list[TensorLayout]:
    """Returns every tensor of the family; with `linear`, matrices are `[outputs, inputs]`."""
    block, ours = f'{prefix}h.{{layer}}.', 'blocks/'
    heads = tuple(f'{ours}attention/{name}' for name in ('query', 'key', 'value'))
    matrices = {
        'attn.c_attn': heads,
        'attn.c_proj': (f'{ours}attention/output',),
        'mlp.c_fc': (f'{ours}mlp/up',),
        'mlp.c_proj': (f'{ours}mlp/down',),
    }
    norms = {
        f'{block}ln_1': f'{ours}attention_norm',
        f'{block}ln_2': f'{ours}mlp_norm',
        f'{prefix}ln_f': 'final_norm',
    }
    entries = [
        TensorLayout(f'{prefix}wte.weight', ('embedding/table',)),
        TensorLayout(f'{prefix}wpe.weight', ('position/table',)),
    ]
    for theirs, paths in matrices.items():
        kernels = tuple(f'{path}/kernel' for path in paths)
        entries.append(TensorLayout(f'{block}{theirs}.weight', kernels, transposed=linear))
        if model.use_bias:
            biases = tuple(f'{path}/bias' for path in paths)
            entries.append(TensorLayout(f'{block}{theirs}.bias', biases))
    for theirs, path in norms.items():
        entries.append(TensorLayout(f'{theirs}.weight', (f'{path}/scale',)))
        if model.use_bias:
            entries.append(TensorLayout(f'{theirs}.bias', (f'{path}/bias',)))
    if not model.tie_embeddings:
        entries.append(TensorLayout('lm_head.weight', ('output/table',)))
    return entries
