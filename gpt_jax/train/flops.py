"""Floating-point operations of training, by formula.

XLA's own count cannot be used, because it counts the body of a loop once.
"""

from gpt_jax.model.config import ModelConfig, NormPlacement, Remat
from gpt_jax.model.gpt import count_multiplied_params, parameter_groups
from gpt_jax.model.layer_stack import layer_stacks
from gpt_jax.model.mlp import NoMLP
from gpt_jax.model.remat import ATTENTION, REMAT_KEEPS, kept_products


def train_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """Returns FLOPs per token of forward and backward, for sequences of `length` tokens.

    6 for each weight that is multiplied with the token (of experts, only the chosen ones), and
    three times the forward pass of what attention computes besides, which is 4 * H * K * length
    for grouped-query attention (PaLM, Chowdhery et al. 2022, appendix B,
    https://arxiv.org/abs/2204.02311). By convention masked scores count too. A layer with a window
    counts the window instead of `length`.
    """
    weights = count_multiplied_params(config)
    return 6.0 * weights + 3 * _attention_flops(config, length) + 3 * _mlp_flops(config)


def recomputed_flops_per_token(config: ModelConfig, *, length: int) -> float:
    """Returns FLOPs per token that `remat` adds, by recomputation in the backward pass.

    `full` recomputes each block, except the last projection of pre-norm blocks, whose output the
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
    weights = count_multiplied_params(config) - outside
    if config.norm_placement == NormPlacement.PRE:
        weights -= _last_weights(config)
    return 2.0 * weights + attention


def _last_weights(config: ModelConfig) -> int:
    """Returns the weights of the last projections of all layers."""
    declared, total = parameter_groups(config).declared, 0
    for stack in layer_stacks(config):
        mlp = config.of_layer(stack.layers[0]).mlp
        if isinstance(mlp, NoMLP):
            total += declared[f'{stack.name}/attention/output/kernel'].value.size
        else:
            total += len(stack.layers) * mlp.last_weights(config)
    return total


def _attention_flops(config: ModelConfig, length: int) -> float:
    """Returns forward FLOPs per token of all attention but its products with weights."""
    return sum(
        count * config.attention.flops(config, min(kind.window or length, length))
        for kind, count in config.counted_kinds
    )


def _mlp_flops(config: ModelConfig) -> float:
    """Returns forward FLOPs per token of all MLPs but their products with weights."""
    return sum(count * mlp.flops(config) for mlp, count in config.counted_mlps)
