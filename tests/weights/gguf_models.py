"""Small models of each architecture of llama.cpp, as a config.json of transformers has them."""

from gpt_jax.model.config import ModelConfig, finalize_model
from gpt_jax.weights.transformers_folder import FAMILIES

SIZES = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
)
GROUPED = SIZES | dict(num_key_value_heads=2)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
YARN = dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=16)


def rope(**values) -> dict:
    return dict(rope_parameters=dict(rope_type='default', rope_theta=1e4) | values)


GEMMA = GROUPED | dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=6)
GEMMA3_ROPE = dict(
    full_attention=dict(rope_type='linear', factor=8.0, rope_theta=5e4),
    sliding_attention=dict(rope_type='default', rope_theta=1e3),
)
DEEPSEEK = (
    SIZES
    | dict(num_experts_per_tok=2)
    | dict(kv_lora_rank=16, q_lora_rank=None, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=8)
    | dict(n_routed_experts=4, n_shared_experts=2, moe_intermediate_size=12)
    | dict(first_k_dense_replace=1)
)
# By name: architecture of llama.cpp, family of transformers, keys.
MODELS = {
    'llama, no window': ('llama', 'mistral', GROUPED | dict(sliding_window=None, head_dim=16)),
    'llama, yarn': ('llama', 'llama', GROUPED | rope(**YARN)),
    'qwen3, yarn': (
        'qwen3',
        'qwen3',
        GROUPED | dict(head_dim=16) | rope(**YARN, beta_fast=8.0, beta_slow=2.0),
    ),
    'mixtral': ('llama', 'mixtral', GROUPED | dict(num_local_experts=3)),
    'qwen3_moe': (
        'qwen3moe',
        'qwen3_moe',
        GROUPED | EXPERTS | dict(moe_intermediate_size=32, norm_topk_prob=True, head_dim=16),
    ),
    'olmoe': ('olmoe', 'olmoe', SIZES | EXPERTS | dict(num_key_value_heads=4)),
    'olmo2': ('olmo2', 'olmo2', GROUPED),
    'gemma2': (
        'gemma2',
        'gemma2',
        GEMMA | dict(attn_logit_softcapping=3.0, final_logit_softcapping=5.0),
    ),
    'gemma2, other layers': (
        'gemma2',
        'gemma2',
        GEMMA | dict(layer_types=['full_attention', 'full_attention', 'sliding_attention']),
    ),
    'gemma3': (
        'gemma3',
        'gemma3_text',
        GEMMA | dict(num_hidden_layers=7, rope_parameters=GEMMA3_ROPE),
    ),
    'gemma3, a cap, untied, no window': (
        'gemma3',
        'gemma3_text',
        GEMMA
        | dict(final_logit_softcapping=5.0, tie_word_embeddings=False)
        | dict(layer_types=['full_attention'] * 3, sliding_window=None),
    ),
    'phi3': ('phi3', 'phi3', GROUPED | rope(partial_rotary_factor=0.5) | dict(sliding_window=None)),
    'smollm3': ('smollm3', 'smollm3', GROUPED | dict(num_hidden_layers=4)),
    'gpt_neox': (
        'gptneox',
        'gpt_neox',
        SIZES | dict(hidden_act='gelu_new') | rope(partial_rotary_factor=0.5),
    ),
    'gpt_neox, sequential': (
        'gptneox',
        'gpt_neox',
        SIZES | dict(hidden_act='gelu_new', use_parallel_residual=False),
    ),
    'stablelm': ('stablelm', 'stablelm', GROUPED | rope(partial_rotary_factor=0.5)),
    'stablelm, parallel, biases': (
        'stablelm',
        'stablelm',
        GROUPED | dict(use_parallel_residual=True, use_qkv_bias=True),
    ),
    'deepseek_v2, as Lite': (
        'deepseek2',
        'deepseek_v2',
        DEEPSEEK | rope(**YARN, mscale=0.707, mscale_all_dim=0.707, beta_fast=8.0),
    ),
    'deepseek_v2, latent queries, scaled gates, tied': (
        'deepseek2',
        'deepseek_v2',
        DEEPSEEK
        | dict(q_lora_rank=9, routed_scaling_factor=1.7, n_shared_experts=1)
        | dict(first_k_dense_replace=0, num_hidden_layers=1, tie_word_embeddings=True)
        | rope(**YARN, mscale_all_dim=1.0),
    ),
}


def family(model_type: str):
    """The family of transformers."""
    return next(each for each in FAMILIES if model_type in each.model_types)


def make(model_type: str, keys: dict) -> ModelConfig:
    """The finalized architecture."""
    model = family(model_type).to_model(keys | dict(model_type=model_type), name='a test')
    finalize_model(model)
    return model
