"""Maximal update parametrization (μP): what a model's weights and products owe to its width.

Yang et al. 2022, https://arxiv.org/abs/2203.03466. Multipliers follow from how much larger a
dimension is than in the base model, at which the hyperparameters were tuned. Here are those of
the forward pass and of initial weights; `gpt_jax.optim.width` has those of updates.
"""

import dataclasses
import math
from fractions import Fraction
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.model.options import CommonConfig, Parametrization
from gpt_jax.parameter import Growth, Parameter, PyTree, Role, map_with_path

_BASE = 'config.model.base.'


def is_mup(config: CommonConfig) -> bool:
    """Returns whether multipliers may differ from 1."""
    return config.parametrization == Parametrization.MUP


def output_multiplier(config: CommonConfig) -> float:
    """Returns the factor of the logits: tables keep the scale and the rate of the base model."""
    return config.base.d_model / config.d_model if is_mup(config) else 1.0


def embedding_multiplier(config: CommonConfig) -> float:
    """Returns the factor of the embeddings, which must not grow with the width."""
    if not config.scale_embedding:
        return 1.0
    return (config.base.d_model if is_mup(config) else config.d_model) ** 0.5


def score_multiplier(config: CommonConfig) -> float:
    """Returns the factor of attention scores beside the root of the head's width.

    Scores are divided by the width itself, times a constant: trained queries and keys align, so
    their product grows as the width. At the base width the two divisors are equal.
    """
    return (base_widths(config)['head_dim'] / config.head_dim) ** 0.5 if is_mup(config) else 1.0


def base_widths(config: CommonConfig) -> dict[str, int]:
    """Returns the widths of the base model, by field of `CommonConfig`.

    Raises:
        UserError: a width that is not given has no whole value in proportion to d_model.
    """
    c, base = config, config.base
    share = Fraction(base.d_model, c.d_model)
    num_heads = base.num_heads or _whole('num_heads', c.num_heads * share, config)
    heads_share = Fraction(num_heads, c.num_heads)
    head_dim = c.head_dim
    if base.num_heads:
        head_dim = _whole('num_heads', c.head_dim * share / heads_share, config)
    num_kv_heads = base.num_kv_heads or c.num_kv_heads
    if not base.num_kv_heads and c.num_kv_heads > 1:
        num_kv_heads = _whole('num_kv_heads', c.num_kv_heads * heads_share, config)
    return {
        'd_model': base.d_model,
        'd_ff': base.d_ff or _whole('d_ff', c.d_ff * share, config),
        'num_heads': num_heads,
        'num_kv_heads': num_kv_heads,
        'head_dim': head_dim,
    }


def _whole(name: str, value: Fraction, config: CommonConfig) -> int:
    if value.denominator != 1:
        raise UserError(
            f'{_BASE}{name} has no whole value in proportion to {_BASE}d_model='
            f'{config.base.d_model} of config.model.d_model={config.d_model}; set it'
        )
    return int(value)


def wider_widths(config: CommonConfig, factor: int) -> dict[str, int]:
    """Returns the widths of a model `factor` times as wide as the base model.

    Heads grow in number, or in width if `config.base.num_heads` is set.
    """
    widths, base = base_widths(config), config.base
    fixed = {'num_heads'} if base.num_heads else {'head_dim'}
    if base.num_heads or base.num_kv_heads or config.num_kv_heads == 1:
        fixed.add('num_kv_heads')
    return {name: size if name in fixed else factor * size for name, size in widths.items()}


def resize(config: Any, widths: dict[str, int]) -> Any:
    """Returns a copy of a finalized model config with other widths.

    What has no width of its own there stays: layers, vocabulary, ranks, numbers of experts.
    """
    share = Fraction(widths['d_ff'], config.d_ff)
    kinds = tuple(
        dataclasses.replace(kind, mlp=kind.mlp and kind.mlp.resize(share))
        for kind in config.layer_kinds
    )
    mlp = config.mlp.resize(share)
    return dataclasses.replace(config, **widths, mlp=mlp, layer_kinds=kinds)


def base_model(config: Any) -> Any:
    """Returns the config of the base model, whose multipliers are all 1."""
    standard = dataclasses.replace(config, parametrization=Parametrization.STANDARD)
    return resize(standard, base_widths(config))


def describe_base(config: CommonConfig) -> str:
    """Returns the widths of the base model in words, for the table at the start of a run."""
    base = base_model(config)
    return f'd_model {base.d_model}, d_ff {base.d_ff}, {base.attention.describe(base)}'


def grow(params: PyTree, base: PyTree) -> PyTree:
    """Notes in boxed parameters how much they outgrow those of the base model; scales their values.

    Raises:
        UserError: a vector grows for which there is no rule; names it.
    """
    sizes: dict[str, Parameter] = {}
    is_leaf = lambda leaf: isinstance(leaf, Parameter)  # noqa: E731
    map_with_path(sizes.__setitem__, base, is_leaf=is_leaf)

    def grow_one(path: str, parameter: Parameter) -> Parameter:
        inputs, outputs = (
            ours / theirs for ours, theirs in zip(parameter.fans, sizes[path].fans, strict=True)
        )
        if parameter.role is Role.VECTOR and parameter.std and outputs != 1:
            raise UserError(
                f'config.model.parametrization=mup has no rule for {path}, a random vector that is '
                f'longer than in the base model; keep its width, or use standard'
            )
        factor = initial_multiplier(Growth(inputs, outputs))
        parameter = parameter.replace(growth=Growth(inputs, outputs), std=factor * parameter.std)
        return parameter if factor == 1 else parameter.replace(value=factor * parameter.value)

    return map_with_path(grow_one, params, is_leaf=is_leaf)


def initial_multiplier(growth: Growth) -> float:
    """Returns the factor of a weight's initial standard deviation.

    It is 1 / √(fan-in growth), so that sums of random products keep their scale, and 1 / (fan-in
    growth) for outputs of fixed number, on which sums of aligned products must vanish at first.
    """
    return 1 / growth.inputs if growth.outputs == 1 else 1 / math.sqrt(growth.inputs)
