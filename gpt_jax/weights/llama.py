"""The Llama family: LlamaForCausalLM, Mistral, Qwen2 and Qwen3.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971: rotary positions, RMSNorm, SwiGLU, no
biases; grouped-query attention since Llama 2. Mistral adds a sliding window, Qwen2 biases to
query, key and value; Qwen3 normalises queries and keys. SmolLM2 and TinyLlama are Llama models.
"""

import dataclasses

from gpt_jax.model.config import (
    MLPKind,
    ModelConfig,
    NormKind,
    NormPlacement,
    PositionKind,
    QKNorm,
)
from gpt_jax.weights.config_parts import DerivedHeadDim, Key, Require, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.layer_parts import LayerWindows, Window, from_layer_on
from gpt_jax.weights.layout import TensorLayout

# Activations of the MLP's gate. geglu uses the tanh form of GELU.
ACTIVATIONS = {'silu': MLPKind.SWIGLU, 'gelu_pytorch_tanh': MLPKind.GEGLU}
FIXED = {
    'position': PositionKind.ROPE,
    'norm': NormKind.RMSNORM,
    'norm_placement': NormPlacement.PRE,
    'final_norm': True,
    'use_bias': False,
    'attention_soft_cap': 0.0,
    'output_soft_cap': 0.0,
}
KV_HEADS = Key('num_key_value_heads', 'num_kv_heads', int, 0)
HEAD_DIM = Key('head_dim', 'head_dim', int, 0)
ACTIVATION = Key('hidden_act', 'mlp.activation', ACTIVATIONS)
EPSILON = Key('rms_norm_eps', 'norm_epsilon', float, 1e-6)
TIED = Key('tie_word_embeddings', 'tie_embeddings', bool, False)
# attention_bias gives biases to all four projections.
ATTENTION_BIAS = Key('attention_bias', ('attention.qkv_bias', 'attention.output_bias'), bool, False)
# Keys of this name in most families.
SIZES = (
    Key('vocab_size', 'vocab_size', int),
    Key('max_position_embeddings', 'max_seq_len', int, 2048),
    Key('num_hidden_layers', 'num_layers', int),
    Key('num_attention_heads', 'num_heads', int),
    Key('hidden_size', 'd_model', int),
    Key('intermediate_size', 'd_ff', int),
    Key('initializer_range', 'init.std', float, 0.02),
    Key('attention_dropout', 'dropouts.attention', float, 0.0),
)
_PARTS = (*SIZES, KV_HEADS, HEAD_DIM, ACTIVATION, EPSILON, TIED, Rope())
_BLOCK = 'model.layers.{layer}.'
TENSORS = {
    'model.embed_tokens': 'embedding',
    f'{_BLOCK}self_attn.q_proj': 'blocks/attention/query',
    f'{_BLOCK}self_attn.k_proj': 'blocks/attention/key',
    f'{_BLOCK}self_attn.v_proj': 'blocks/attention/value',
    f'{_BLOCK}self_attn.o_proj': 'blocks/attention/output',
    f'{_BLOCK}self_attn.q_norm': 'blocks/attention/query_norm',
    f'{_BLOCK}self_attn.k_norm': 'blocks/attention/key_norm',
    f'{_BLOCK}mlp.gate_proj': 'blocks/mlp/gate',
    f'{_BLOCK}mlp.up_proj': 'blocks/mlp/up',
    f'{_BLOCK}mlp.down_proj': 'blocks/mlp/down',
    f'{_BLOCK}input_layernorm': 'blocks/attention_norm',
    f'{_BLOCK}post_attention_layernorm': 'blocks/mlp_norm',
    'model.norm': 'final_norm',
    'lm_head': 'output',
}
# Old files store the frequencies of the rotation.
WITHOUT_WEIGHTS = r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq'

LLAMA = DescribedFamily(
    model_type='llama',
    architecture='LlamaForCausalLM',
    fixed=FIXED,
    parts=(
        *_PARTS,
        ATTENTION_BIAS,
        Key('mlp_bias', 'mlp.bias', bool, False),
        Require('rope_interleaved', False),
    ),
    tensors=TENSORS,
    inert=('pretraining_tp',),  # splits the same sums into parts
    without_weights=WITHOUT_WEIGHTS,
)
_QWEN = dict(
    tensors=TENSORS,
    without_weights=WITHOUT_WEIGHTS,
)
_QWEN_PARTS = (LayerWindows(switched=True, slides=from_layer_on), Require('use_mrope', False))
QWEN2 = DescribedFamily(
    model_type='qwen2',
    architecture='Qwen2ForCausalLM',
    fixed=FIXED | {'attention.qkv_bias': True},
    parts=(*_PARTS, *_QWEN_PARTS, DerivedHeadDim(), Require('attention_bias', True)),
    **_QWEN,
)
QWEN3 = DescribedFamily(
    model_type='qwen3',
    architecture='Qwen3ForCausalLM',
    fixed=FIXED | {'attention.qk_norm': QKNorm.HEAD},
    parts=(
        *(part for part in _PARTS if part is not HEAD_DIM),
        Key('head_dim', 'head_dim', int, 128),
        *_QWEN_PARTS,
        ATTENTION_BIAS,
    ),
    **_QWEN,
)
MISTRAL = DescribedFamily(
    model_type='mistral',
    architecture='MistralForCausalLM',
    fixed=FIXED,
    parts=(*_PARTS, Window(default=4096)),
    tensors=TENSORS,
    without_weights=WITHOUT_WEIGHTS,
)
_ROTATED = ('blocks/attention/query', 'blocks/attention/key')
FAMILIES = (LLAMA, QWEN2, QWEN3, MISTRAL)


def layout_in_pairs(model: ModelConfig) -> list[TensorLayout]:
    """Returns a Llama's tensors in a format that rotates neighbouring pairs of each head."""
    paired = tuple(name for name, ours in TENSORS.items() if ours in _ROTATED)
    return dataclasses.replace(LLAMA, by_head=paired, in_pairs=paired).layout(model)
