"""Floating-point operations of training, by formula.

XLA's own count is of no use here: it counts the body of a loop once.
"""

from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import count_params


def train_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """FLOPs of forward and backward a token, for sequences of `length` tokens.

    6 for each weight that takes part in a product and 12 * H * K * length for each layer's
    attention (PaLM, Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311). The
    causal half of the scores is counted in full, as is customary; a window counts its width.
    """
    tables = config.d_model * (
        (config.max_seq_len if config.position == 'learned' else 0)
        + (0 if config.tie_embeddings else config.vocab_size)
    )
    spans = [min(config.window(i) or length, length) for i in range(config.num_layers)]
    attention = 12 * config.num_heads * config.head_dim * sum(spans)
    return 6.0 * (count_params(config) - tables) + attention
