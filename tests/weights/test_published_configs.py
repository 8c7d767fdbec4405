"""The config.json of published models, and the number of parameters that each is known to have."""

import pytest

from gpt_jax.model.config import finalize_model
from gpt_jax.model.gpt import count_params
from gpt_jax.weights.transformers_folder import FAMILIES

_GPT2 = {
    'activation_function': 'gelu_new',
    'architectures': ['GPT2LMHeadModel'],
    'attn_pdrop': 0.1,
    'bos_token_id': 50256,
    'embd_pdrop': 0.1,
    'eos_token_id': 50256,
    'initializer_range': 0.02,
    'layer_norm_epsilon': 1e-05,
    'model_type': 'gpt2',
    'n_ctx': 1024,
    'n_embd': 768,
    'n_head': 12,
    'n_layer': 12,
    'n_positions': 1024,
    'resid_pdrop': 0.1,
    'summary_activation': None,
    'summary_first_dropout': 0.1,
    'summary_proj_to_labels': True,
    'summary_type': 'cls_index',
    'summary_use_proj': True,
    'task_specific_params': {'text-generation': {'do_sample': True, 'max_length': 50}},
    'vocab_size': 50257,
}
_LLAMA = {
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': False,
    'attention_dropout': 0.0,
    'hidden_act': 'silu',
    'mlp_bias': False,
    'model_type': 'llama',
    'pretraining_tp': 1,
    'rms_norm_eps': 1e-05,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.45.0',
    'use_cache': True,
}
_QWEN = {
    'attention_dropout': 0.0,
    'bos_token_id': 151643,
    'hidden_act': 'silu',
    'initializer_range': 0.02,
    'rms_norm_eps': 1e-06,
    'rope_theta': 1000000.0,
    'sliding_window': 32768,
    'tie_word_embeddings': True,
    'torch_dtype': 'bfloat16',
    'use_cache': True,
    'use_sliding_window': False,
    'vocab_size': 151936,
}
MODELS = {
    'gpt2': (_GPT2, 124_439_808),
    'gpt2-medium': (
        _GPT2
        | {'n_embd': 1024, 'n_head': 16, 'n_layer': 24}
        | {'n_special': 0, 'predict_special_tokens': True},
        354_823_168,
    ),
    'SmolLM2-135M': (
        _LLAMA
        | {
            'hidden_size': 576,
            'initializer_range': 0.041666666666666664,
            'intermediate_size': 1536,
            'is_llama_config': True,
            'max_position_embeddings': 8192,
            'num_attention_heads': 9,
            'num_hidden_layers': 30,
            'num_key_value_heads': 3,
            'rope_interleaved': False,
            'rope_scaling': None,
            'rope_theta': 100000,
            'tie_word_embeddings': True,
            'transformers.js_config': {'kv_cache_dtype': {'fp16': 'float16'}},
            'vocab_size': 49152,
        },
        134_515_008,
    ),
    'TinyLlama-1.1B': (
        _LLAMA
        | {
            'hidden_size': 2048,
            'initializer_range': 0.02,
            'intermediate_size': 5632,
            'max_position_embeddings': 2048,
            'num_attention_heads': 32,
            'num_hidden_layers': 22,
            'num_key_value_heads': 4,
            'rope_scaling': None,
            'tie_word_embeddings': False,
            'vocab_size': 32000,
        },
        1_100_048_384,
    ),
    'Llama-3.2-1B': (
        _LLAMA
        | {
            'head_dim': 64,
            'hidden_size': 2048,
            'initializer_range': 0.02,
            'intermediate_size': 8192,
            'max_position_embeddings': 131072,
            'num_attention_heads': 32,
            'num_hidden_layers': 16,
            'num_key_value_heads': 8,
            'rope_scaling': {
                'factor': 32.0,
                'high_freq_factor': 4.0,
                'low_freq_factor': 1.0,
                'original_max_position_embeddings': 8192,
                'rope_type': 'llama3',
            },
            'rope_theta': 500000.0,
            'tie_word_embeddings': True,
            'vocab_size': 128256,
        },
        1_235_814_400,
    ),
    'Qwen2.5-0.5B': (
        _QWEN
        | {
            'architectures': ['Qwen2ForCausalLM'],
            'hidden_size': 896,
            'intermediate_size': 4864,
            'max_position_embeddings': 32768,
            'max_window_layers': 24,
            'model_type': 'qwen2',
            'num_attention_heads': 14,
            'num_hidden_layers': 24,
            'num_key_value_heads': 2,
            'use_mrope': False,
        },
        494_032_768,
    ),
    'Qwen3-0.6B': (
        _QWEN
        | {
            'architectures': ['Qwen3ForCausalLM'],
            'attention_bias': False,
            'head_dim': 128,
            'hidden_size': 1024,
            'intermediate_size': 3072,
            'max_position_embeddings': 40960,
            'max_window_layers': 28,
            'model_type': 'qwen3',
            'num_attention_heads': 16,
            'num_hidden_layers': 28,
            'num_key_value_heads': 8,
            'rope_scaling': None,
            'sliding_window': None,
        },
        596_049_920,
    ),
}


@pytest.mark.parametrize(('config', 'parameters'), MODELS.values(), ids=MODELS)
def test_parameters(config, parameters):
    [family] = (family for family in FAMILIES if config['model_type'] in family.model_types)
    model = family.to_model(config, name='config.json')
    finalize_model(model)
    assert count_params(model) == parameters
    again = family.to_model(family.from_model(model), name='config.json')
    finalize_model(again)
    assert again == model
