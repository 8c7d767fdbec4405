"""Description of an architecture as the JavaScript of `gpt_jax.web` computes it."""

from typing import Any

from gpt_jax.config_tree import member_name
from gpt_jax.errors import UserError
from gpt_jax.model.attention import GroupedQuery
from gpt_jax.model.config import ModelConfig, PositionKind
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.model.layer_stack import layer_stacks
from gpt_jax.model.mlp import Dense, NoMLP
from gpt_jax.model.parametrization import (
    embedding_multiplier,
    output_multiplier,
    score_multiplier,
)
from gpt_jax.model.position import alibi_slopes, rope_frequencies
from gpt_jax.parameter import Role
from gpt_jax.weights.layout import TensorLayout


def describe_model(model: ModelConfig) -> dict[str, Any]:
    """Returns the sizes and switches of the network, with all that is derived from knobs.

    Raises:
        UserError: a part of the network has no JavaScript.
    """
    wrong = _unsupported(model)
    if wrong:
        raise UserError(
            f'--format web has no {wrong}, only grouped_query attention and dense MLPs; '
            f'--format safetensors takes any architecture'
        )
    return {
        'vocabSize': model.vocab_size,
        'context': model.max_seq_len,
        'heads': model.num_heads,
        'keyHeads': model.num_kv_heads,
        'headDim': model.head_dim,
        'width': model.d_model,
        'hidden': model.d_ff,
        'epsilon': model.norm_epsilon,
        'normPlacement': model.norm_placement,
        'normZeroCentered': model.norm_zero_centered,
        'parallelResidual': model.parallel_residual,
        'finalNorm': model.norm if model.final_norm else '',
        'qkNorm': model.attention.qk_norm,
        'position': model.position,
        'positionOffset': model.position_offset,
        'slopes': _slopes(model),
        'attentionFactor': model.rope.attention_factor,
        'scoreCap': model.attention_soft_cap,
        'embeddingScale': embedding_multiplier(model),
        'outputScale': output_multiplier(model),
        'outputCap': model.output_soft_cap,
        'tied': model.tie_embeddings,
        'layers': [_describe_layer(model, layer) for layer in range(model.num_layers)],
    }


def layout(model: ModelConfig) -> list[TensorLayout]:
    """Returns every parameter: matrices as `[outputs, inputs]`, those of blocks layer by layer."""
    groups, entries = parameter_groups(model), []
    stacks = {stack.name: stack for stack in layer_stacks(model)}
    for path in groups.declared:
        first, _, rest = path.partition('/')
        transposed = groups.role(path) is Role.HIDDEN
        if first in stacks:
            name = 'layers.{layer}.' + rest.replace('/', '.')
            entries.append(TensorLayout(name, (path,), transposed, layers=stacks[first].layers))
        else:
            entries.append(TensorLayout(path.replace('/', '.'), (path,), transposed))
    return entries


def _unsupported(model: ModelConfig) -> str:
    if not isinstance(model.attention, GroupedQuery):
        return f'config.model.attention={member_name(model.attention)}'
    for mlp in model.mlps:
        if not isinstance(mlp, Dense | NoMLP):
            return f'config.model.mlp={member_name(mlp)}'
    return ''


def _describe_layer(model: ModelConfig, layer: int) -> dict[str, Any]:
    own, attention = model.of_layer(layer), model.attention
    score_scale = (attention.query_pre_attn_scalar or model.head_dim) ** -0.5
    score_scale *= score_multiplier(model)
    if attention.inverse_layer_scale:
        score_scale /= layer + 1
    rotates = own.position == PositionKind.ROPE
    return {
        'norm': own.norm,
        'window': model.windows[layer],
        'frequencies': rope_frequencies(own).tolist() if rotates else None,
        'scoreScale': score_scale,
        'mlp': own.mlp.activation if isinstance(own.mlp, Dense) else '',
    }


def _slopes(model: ModelConfig) -> list[float] | None:
    return alibi_slopes(model).tolist() if model.position == PositionKind.ALIBI else None
