"""Floating-point operations of training, by formula.

XLA's own count is of no use here: it counts the body of a loop once.
"""

from gpt_jax.model.config import ModelConfig, NormPlacement, Remat
from gpt_jax.model.gpt import count_params
from gpt_jax.model.remat import REMAT_KEEPS, kept_products


def train_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """FLOPs of forward and backward a token, for sequences of `length` tokens.

    6 for each weight that takes part in a product and 12 * H * K * length for each layer's
    attention (PaLM, Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311). The
    causal half of the scores is counted in full, as is customary; a window counts its width.
    """
    weights = count_params(config) - _lookup_tables(config)
    return 6.0 * weights + 3 * _attention_flops(config, length)


def recomputed_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """FLOPs a token that `remat` adds: what the backward pass computes a second time.

    `full` runs each block forward again, all but the MLP's last product where nothing stands
    behind it that needs its result; where `DOTS` are kept no product with weights, and where
    'attention' is kept not its two products. What a kernel recomputes within itself is not
    counted, nor what those on CPUs compute again because they keep more than one result.
    """
    if config.remat == Remat.NONE:
        return 0.0
    kept = REMAT_KEEPS[config.remat]
    attention = 0.0 if 'attention' in kept else _attention_flops(config, length)
    if kept_products(config.remat):
        return attention
    outside = config.d_model * config.vocab_size + (config.d_model if config.final_norm else 0)
    weights = count_params(config) - _lookup_tables(config) - outside
    if config.norm_placement == NormPlacement.PRE:
        weights -= config.num_layers * config.d_ff * config.d_model
    return 2.0 * weights + attention


def _attention_flops(config: ModelConfig, length: int) -> float:
    """FLOPs a token of the scores and of the weighted sum of values, forward."""
    spans = [min(config.window(i) or length, length) for i in range(config.num_layers)]
    return 4.0 * config.num_heads * config.head_dim * sum(spans)


def _lookup_tables(config: ModelConfig) -> int:
    """Parameters that rows are only read from: no product has them."""
    rows = config.max_seq_len if config.position == 'learned' else 0
    return config.d_model * (rows + (0 if config.tie_embeddings else config.vocab_size))
