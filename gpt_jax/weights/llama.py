"""The Llama family: LlamaForCausalLM, Qwen2 and Qwen3.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971: rotary positions, RMSNorm, SwiGLU, no
biases; grouped-query attention since Llama 2. Qwen2 adds biases to query, key and value; Qwen3
normalises queries and keys instead. SmolLM2 and TinyLlama are Llama models.
"""

from typing import Any

from gpt_jax.errors import UserError
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

_ARCHITECTURES = {
    'llama': 'LlamaForCausalLM',
    'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM',
}
MODEL_TYPES = tuple(_ARCHITECTURES)
WITHOUT_WEIGHTS = r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq'
# Activations of the MLP's gate. geglu uses the tanh form of GELU.
_ACTIVATIONS = {'silu': MLPKind.SWIGLU, 'gelu_pytorch_tanh': MLPKind.GEGLU}
_INERT = (
    *INERT_KEYS,
    'pretraining_tp',  # splits the same sums into parts
    'max_window_layers',  # unused, like sliding_window, without use_sliding_window
    'sliding_window',
)
CAPABILITIES = {
    'position': (PositionKind.ROPE,),
    'norm': (NormKind.RMSNORM,),
    'norm_placement': (NormPlacement.PRE,),
    'final_norm': (True,),
    'attention': (GroupedQuery,),
    'mlp': (Dense,),
    'mlp.activation': tuple(_ACTIVATIONS.values()),
    'use_bias': (False,),
    'window_pattern': ((),),
    'attention_soft_cap': (0.0,),
    'output_soft_cap': (0.0,),
}


def to_model(config: dict[str, Any], *, name: str) -> ModelConfig:
    """Returns the architecture that a config.json of transformers describes.

    Raises:
        UserError: a key or a value has no counterpart; the message names it.
    """
    c = ConfigReader(config, name=name)
    kind = config['model_type']
    c.require('architectures', None, [_ARCHITECTURES[kind]])
    c.require('attention_bias', kind == 'qwen2')
    c.require('mlp_bias', False)
    c.require('use_sliding_window', False)
    c.require('use_mrope', False)
    c.require('rope_interleaved', False)
    layers = c.take_int('num_hidden_layers')
    types = c.take_list('layer_types', str, None) or []
    if types and (len(types) != layers or {*types} != {'full_attention'}):
        raise UserError(f'{name} has layer_types other than full_attention, which is not supported')
    model = ModelConfig(
        vocab_size=c.take_int('vocab_size'),
        max_seq_len=c.take_int('max_position_embeddings', 2048),
        num_layers=layers,
        num_heads=c.take_int('num_attention_heads'),
        num_kv_heads=c.take_int('num_key_value_heads', 0),
        d_model=c.take_int('hidden_size'),
        d_ff=c.take_int('intermediate_size'),
        head_dim=c.take_int('head_dim', 128 if kind == 'qwen3' else 0),
        position=PositionKind.ROPE,
        norm=NormKind.RMSNORM,
        norm_epsilon=c.take_float('rms_norm_eps', 1e-6),
        mlp=_ACTIVATIONS[c.require('hidden_act', *_ACTIVATIONS)],
        use_bias=False,
        attention=GroupedQuery(qkv_bias=kind == 'qwen2', qk_norm=kind == 'qwen3'),
        tie_embeddings=c.take_bool('tie_word_embeddings', False),
        init=InitConfig(std=c.take_float('initializer_range', 0.02), scale_residual=False),
        dropouts=DropoutConfig(attention=c.take_float('attention_dropout', 0.0)),
    )
    _read_rope(c, model, name=name)
    c.finish(_INERT)
    return model


def _read_rope(c: ConfigReader, model: ModelConfig, *, name: str) -> None:
    """Reads the rotary settings: `rope_parameters`, or `rope_theta` and `rope_scaling` before
    transformers 5.
    """
    base = c.take_float('rope_theta', 10000.0)
    scaling = c.take('rope_scaling', None)
    rope = ConfigReader(c.take('rope_parameters', None) or scaling or {}, name=f'{name}, rope')
    model.rope.base = rope.take_float('rope_theta', base)
    rope.require('partial_rotary_factor', 1.0)
    kind = rope.take('type', 'default')
    kind = rope.take('rope_type', kind)
    if kind not in ('default', 'linear', 'llama3'):
        raise UserError(
            f"{name} has rope_type={kind!r}, which is not supported; supported: 'default', "
            f"'linear', 'llama3'"
        )
    if kind != 'default':
        model.rope.scaling = rope.take_float('factor')
    if kind == 'llama3':
        model.rope.original_seq_len = rope.take_int('original_max_position_embeddings')
        model.rope.low_freq_factor = rope.take_float('low_freq_factor')
        model.rope.high_freq_factor = rope.take_float('high_freq_factor')
    rope.finish(())


def from_model(model: ModelConfig) -> dict[str, Any]:
    """Returns transformers' config.json for an architecture within `CAPABILITIES`."""
    kind = 'qwen2' if model.attention.qkv_bias else 'qwen3' if model.attention.qk_norm else 'llama'
    rope: dict[str, Any] = {'rope_type': 'default', 'rope_theta': model.rope.base}
    if model.rope.original_seq_len:
        rope |= {
            'rope_type': 'llama3',
            'factor': model.rope.scaling,
            'original_max_position_embeddings': model.rope.original_seq_len,
            'low_freq_factor': model.rope.low_freq_factor,
            'high_freq_factor': model.rope.high_freq_factor,
        }
    elif model.rope.scaling != 1:
        rope |= {'rope_type': 'linear', 'factor': model.rope.scaling}
    scaling = {key: value for key, value in rope.items() if key != 'rope_theta'}
    return {
        'architectures': [_ARCHITECTURES[kind]],
        'model_type': kind,
        'vocab_size': model.vocab_size,
        'max_position_embeddings': model.max_seq_len,
        'num_hidden_layers': model.num_layers,
        'num_attention_heads': model.num_heads,
        'num_key_value_heads': model.num_kv_heads,
        'head_dim': model.head_dim,
        'hidden_size': model.d_model,
        'intermediate_size': model.d_ff,
        'hidden_act': next(a for a, mlp in _ACTIVATIONS.items() if mlp == model.mlp.activation),
        'rms_norm_eps': model.norm_epsilon,
        'attention_bias': kind == 'qwen2',
        'attention_dropout': model.dropouts.attention,
        'tie_word_embeddings': model.tie_embeddings,
        'initializer_range': model.init.std,
        # Transformers 5 reads the first key, older versions the other two.
        'rope_parameters': rope,
        'rope_theta': model.rope.base,
        'rope_scaling': scaling if rope['rope_type'] != 'default' else None,
    }


def obstacle(model: ModelConfig) -> str:
    """Returns an unsupported setting that `CAPABILITIES` does not cover; '' if there is none."""
    if model.attention.qkv_bias and model.attention.qk_norm:
        return 'config.model.attention.qkv_bias with config.model.attention.qk_norm'
    if model.attention.qkv_bias and model.num_heads * model.head_dim != model.d_model:
        return f'config.model.head_dim={model.head_dim} with config.model.attention.qkv_bias'
    return ''


def layout(model: ModelConfig) -> list[TensorLayout]:
    """Returns every tensor of the family."""
    block = 'model.layers.{layer}.'
    matrices = {
        'self_attn.q_proj': 'attention/query',
        'self_attn.k_proj': 'attention/key',
        'self_attn.v_proj': 'attention/value',
        'self_attn.o_proj': 'attention/output',
        'mlp.gate_proj': 'mlp/gate',
        'mlp.up_proj': 'mlp/up',
        'mlp.down_proj': 'mlp/down',
    }
    vectors = {
        'input_layernorm.weight': 'attention_norm/scale',
        'post_attention_layernorm.weight': 'mlp_norm/scale',
    }
    if model.attention.qkv_bias:
        for theirs, ours in (('q', 'query'), ('k', 'key'), ('v', 'value')):
            vectors[f'self_attn.{theirs}_proj.bias'] = f'attention/{ours}/bias'
    if model.attention.qk_norm:
        for theirs, ours in (('q', 'query'), ('k', 'key')):
            vectors[f'self_attn.{theirs}_norm.weight'] = f'attention/{ours}_norm/scale'
    entries = [TensorLayout('model.embed_tokens.weight', ('embedding/table',))]
    for theirs, ours in matrices.items():
        path = f'blocks/{ours}/kernel'
        entries.append(TensorLayout(f'{block}{theirs}.weight', (path,), transposed=True))
    for theirs, ours in vectors.items():
        entries.append(TensorLayout(f'{block}{theirs}', (f'blocks/{ours}',)))
    entries.append(TensorLayout('model.norm.weight', ('final_norm/scale',)))
    if not model.tie_embeddings:
        entries.append(TensorLayout('lm_head.weight', ('output/table',)))
    return entries
