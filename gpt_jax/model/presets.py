"""Published architectures by name, as config values: `ModelConfig(**PRESETS['gpt2_124m'])`."""

from typing import Any

from gpt_jax.model.config import DType, MLPKind, NormKind, NormPlacement, PositionKind, QKNorm

# Radford et al. 2018: post-norm and no final norm.
_GPT1 = {
    'vocab_size': 40478,
    'max_seq_len': 512,
    'norm_placement': NormPlacement.POST,
    'final_norm': False,
    'dropouts': {'residual': 0.1, 'attention': 0.1},
    'init': {'scale_residual': False},
}
# Radford et al. 2019. The defaults of ModelConfig are GPT-2's.
_GPT2 = {'vocab_size': 50257, 'max_seq_len': 1024}
# Brown et al. 2020, https://arxiv.org/abs/2005.14165, table 2.1, but with dense attention in all
# layers; the paper alternates dense and banded attention.
_GPT3 = {'vocab_size': 50257, 'max_seq_len': 2048}
# Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783.
_LLAMA = {
    'position': PositionKind.ROPE,
    'norm': NormKind.RMSNORM,
    'mlp': MLPKind.SWIGLU,
    'use_bias': False,
    'init': {'scale_residual': False},
}


def _size(num_layers: int, num_heads: int, d_model: int, head_dim: int = 0) -> dict[str, int]:
    return {
        'num_layers': num_layers,
        'num_heads': num_heads,
        'd_model': d_model,
        'head_dim': head_dim,
    }


PRESETS: dict[str, dict[str, Any]] = {
    'gpt1': _GPT1 | _size(12, 12, 768),
    'gpt2_124m': _GPT2 | _size(12, 12, 768),
    'gpt2_355m': _GPT2 | _size(24, 16, 1024),
    'gpt2_774m': _GPT2 | _size(36, 20, 1280),
    'gpt2_1558m': _GPT2 | _size(48, 25, 1600),
    'gpt3_125m': _GPT3 | _size(12, 12, 768),
    'gpt3_350m': _GPT3 | _size(24, 16, 1024),
    'gpt3_760m': _GPT3 | _size(24, 16, 1536),
    # The paper's table has 24 heads of 128 for d_model 2048, but 2048 / 128 is 16.
    'gpt3_1300m': _GPT3 | _size(24, 16, 2048),
    'llama3_1b': _LLAMA
    | _size(16, 32, 2048)
    | {
        'vocab_size': 128256,
        'max_seq_len': 8192,
        'num_kv_heads': 8,
        'd_ff': 8192,
        'rope': {'base': 500000.0},
    },
    # Muennighoff et al. 2024, https://arxiv.org/abs/2409.02060: 6.9 billion parameters, of which a
    # token uses 1.3.
    'olmoe_1b_7b': _size(16, 16, 2048)
    | {
        'vocab_size': 50304,
        'max_seq_len': 4096,
        'position': PositionKind.ROPE,
        'norm': NormKind.RMSNORM,
        'attention': {'qk_norm': QKNorm.FULL},
        'mlp': {
            '_type': 'mixture_of_experts',
            'num_experts': 64,
            'experts_per_token': 8,
            'd_expert': 1024,
            'normalize_gates': False,
            'balance_loss': 0.01,
            'router_z_loss': 0.001,
        },
        'use_bias': False,
        'tie_embeddings': False,
        'init': {'scale_residual': False},
    },
    # Common choices for small models today: rotary positions, RMSNorm, query-key norm,
    # squared ReLU, an untied output with a soft cap, no biases.
    'modern_124m': _size(12, 6, 768)
    | {
        'vocab_size': 50257,
        'max_seq_len': 1024,
        'position': PositionKind.ROPE,
        'norm': NormKind.RMSNORM,
        'qk_norm': True,
        'mlp': MLPKind.RELU2,
        'use_bias': False,
        'tie_embeddings': False,
        'output_soft_cap': 15.0,
        'precision': {'compute': DType.BFLOAT16},
    },
}
