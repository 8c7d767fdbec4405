"""Floating-point operations of training, by formula.

XLA's own count cannot be used, because it counts the body of a loop once.
"""

from gpt_jax.model.config import ModelConfig, NormPlacement, Remat
from gpt_jax.model.gpt import abstract_params, count_params
from gpt_jax.model.remat import ATTENTION, REMAT_KEEPS, kept_products
from gpt_jax.optim.param_groups import ParameterGroups


def train_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """Returns FLOPs per token of forward and backward, for sequences of `length` tokens.

    6 for each weight that is part of a product, and 12 * H * K * length for each layer's attention
    (PaLM, Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311). By convention
    masked scores count too. A layer with a window counts the window instead of `length`.
    """
    weights = _multiplied_weights(config)
    return 6.0 * weights + 3 * _attention_flops(config, length)


def recomputed_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """Returns FLOPs per token that `remat` adds, by recomputation in the backward pass.

    `full` recomputes each block, except the down-projection in pre-norm blocks, whose output the
    backward pass never needs. Where products are kept, none with weights is recomputed; where
    'attention' is kept, its two products are not. Not counted: recomputation inside a kernel, and
    that of CPU kernels, which need more residuals than their named output.
    """
    if config.execution.remat == Remat.NONE:
        return 0.0
    kept = REMAT_KEEPS[config.execution.remat]
    attention = 0.0 if ATTENTION in kept else _attention_flops(config, length)
    if kept_products(config.execution.remat):
        return attention
    outside = config.d_model * config.vocab_size + (config.d_model if config.final_norm else 0)
    weights = _multiplied_weights(config) - outside
    if config.norm_placement == NormPlacement.PRE:
        weights -= config.num_layers * config.d_ff * config.d_model
    return 2.0 * weights + attention


def _attention_flops(config: ModelConfig, length: int) -> float:
    """Returns forward FLOPs per token of the scores and of the weighted sum of values."""
    spans = [min(config.window(i) or length, length) for i in range(config.num_layers)]
    return 4.0 * config.num_heads * config.head_dim * sum(spans)


def _multiplied_weights(config: ModelConfig) -> int:
    """Returns the number of parameters without tables that are only looked up."""
    groups = ParameterGroups.of(abstract_params(config))
    looked_up = [each for each in groups.declared.values() if not each.in_product]
    padding = (config.padded_vocab_size - config.vocab_size) * config.d_model
    rows = sum(each.value.size - (padding if each.names[0] == 'vocab' else 0) for each in looked_up)
    return count_params(config) - rows
