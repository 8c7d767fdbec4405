"""Floating-point operations of training, by formula.

XLA's own count cannot be used, because it counts the body of a loop once.
"""

from gpt_jax.model.config import ModelConfig, NormPlacement, Remat
from gpt_jax.model.gpt import count_params
from gpt_jax.model.remat import REMAT_KEEPS, kept_products


def train_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """Returns FLOPs per token of forward and backward, for sequences of `length` tokens.

    6 for each weight that is part of a product, and 12 * H * K * length for each layer's attention
    (PaLM, Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311). By convention
    masked scores count too. A layer with a window counts the window instead of `length`.
    """
    weights = count_params(config) - _lookup_tables(config)
    return 6.0 * weights + 3 * _attention_flops(config, length)


def recomputed_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """Returns FLOPs per token that `remat` adds, by recomputation in the backward pass.

    `full` recomputes each block, except the down-projection in pre-norm blocks, whose output the
    backward pass never needs. Where `DOTS` are kept, no product with weights is recomputed; where
    'attention' is kept, its two products are not. Not counted: recomputation inside a kernel, and
    that of CPU kernels, which need more residuals than their named output.
    """
    if config.execution.remat == Remat.NONE:
        return 0.0
    kept = REMAT_KEEPS[config.execution.remat]
    attention = 0.0 if 'attention' in kept else _attention_flops(config, length)
    if kept_products(config.execution.remat):
        return attention
    outside = config.d_model * config.vocab_size + (config.d_model if config.final_norm else 0)
    weights = count_params(config) - _lookup_tables(config) - outside
    if config.norm_placement == NormPlacement.PRE:
        weights -= config.num_layers * config.d_ff * config.d_model
    return 2.0 * weights + attention


def _attention_flops(config: ModelConfig, length: int) -> float:
    """Returns forward FLOPs per token of the scores and of the weighted sum of values."""
    spans = [min(config.window(i) or length, length) for i in range(config.num_layers)]
    return 4.0 * config.num_heads * config.head_dim * sum(spans)


def _lookup_tables(config: ModelConfig) -> int:
    """Returns the number of parameters in tables that are only looked up, never multiplied."""
    rows = config.max_seq_len if config.position == 'learned' else 0
    return config.d_model * (rows + (0 if config.tie_embeddings else config.vocab_size))
