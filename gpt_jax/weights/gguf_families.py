"""The models of llama.cpp that this model has too, and transformers' families in them."""

import itertools
from collections.abc import Mapping
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.model.attention import Latent
from gpt_jax.model.config import (
    MLPKind,
    ModelConfig,
    NormKind,
    ParallelResidual,
    PositionKind,
    QKNorm,
)
from gpt_jax.model.mlp import MixtureOfExperts
from gpt_jax.weights import gemma2, gemma3, gpt_neox, olmo2, stablelm
from gpt_jax.weights.config_parts import DerivedHeadDim, Key, Part, Require
from gpt_jax.weights.deepseek_v2 import SharedExperts
from gpt_jax.weights.expert_parts import FirstLayersDense
from gpt_jax.weights.export import choose_family
from gpt_jax.weights.gguf_architecture import Architecture
from gpt_jax.weights.gguf_latent import LatentHeads, LatentRope
from gpt_jax.weights.gguf_parts import (
    FixedQueryScalar,
    HeadWidth,
    LocalRope,
    NoBalance,
    Positive,
    Rope,
    RotatesAllButEach,
    Softmax,
    SomeWindows,
    Ungrouped,
    UnusedWindow,
)
from gpt_jax.weights.llama import FIXED

_LAYER = 'blk.{layer}.'
TENSORS = {
    'token_embd': 'embedding',
    'position_embd': 'position',
    f'{_LAYER}attn_norm': 'blocks/attention_norm',
    f'{_LAYER}attn_q': 'blocks/attention/query',
    f'{_LAYER}attn_k': 'blocks/attention/key',
    f'{_LAYER}attn_v': 'blocks/attention/value',
    f'{_LAYER}attn_q_norm': 'blocks/attention/query_norm',
    f'{_LAYER}attn_k_norm': 'blocks/attention/key_norm',
    f'{_LAYER}attn_output': 'blocks/attention/output',
    f'{_LAYER}post_attention_norm': 'blocks/attention_post_norm',
    f'{_LAYER}ffn_norm': 'blocks/mlp_norm',
    f'{_LAYER}ffn_gate': 'blocks/mlp/gate',
    f'{_LAYER}ffn_up': 'blocks/mlp/up',
    f'{_LAYER}ffn_down': 'blocks/mlp/down',
    f'{_LAYER}post_ffw_norm': 'blocks/mlp_post_norm',
    # A file stores the experts of a layer in one tensor (`experts_name`).
    f'{_LAYER}ffn_gate_inp': 'blocks/mlp/router',
    f'{_LAYER}ffn_gate_exps.{{expert}}': 'blocks/mlp/gate',
    f'{_LAYER}ffn_up_exps.{{expert}}': 'blocks/mlp/up',
    f'{_LAYER}ffn_down_exps.{{expert}}': 'blocks/mlp/down',
    f'{_LAYER}ffn_gate_shexp': 'blocks/mlp/shared/gate',
    f'{_LAYER}ffn_up_shexp': 'blocks/mlp/shared/up',
    f'{_LAYER}ffn_down_shexp': 'blocks/mlp/shared/down',
    'output_norm': 'final_norm',
    'output': 'output',
}
_QKV = {
    f'{_LAYER}attn_qkv': tuple(f'blocks/attention/{name}' for name in ('query', 'key', 'value'))
}
_GATE_UP = {f'{_LAYER}ffn_up': ('blocks/mlp/gate', 'blocks/mlp/up')}


def _joined(joins: Mapping[str, tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
    """Returns the names of tensors of which those of `joins` hold several of our modules."""
    joined = {*itertools.chain(*joins.values())}
    return {theirs: ours for theirs, ours in TENSORS.items() if ours not in joined} | {**joins}


_SIZES = (
    Key('context_length', 'max_seq_len', int),
    Key('embedding_length', 'd_model', int),
    Key('block_count', 'num_layers', int),
    Key('attention.head_count', 'num_heads', int),
)
_GROUPS = Key('attention.head_count_kv', 'num_kv_heads', int, 0)
_RMS_EPSILON = Key('attention.layer_norm_rms_epsilon', 'norm_epsilon', float)
_EPSILON = Key('attention.layer_norm_epsilon', 'norm_epsilon', float, 1e-5)
_NO_EXPERTS = (Require('expert_count', 0), Require('expert_used_count', 0))
_DENSE = (*_SIZES, Key('feed_forward_length', 'd_ff', int), *_NO_EXPERTS)
_EXPERTS = (
    *_SIZES,
    Key('expert_count', 'mlp.num_experts', int),
    Key('expert_used_count', 'mlp.experts_per_token', int),
    NoBalance(),
)
_D_EXPERT = Key('feed_forward_length', 'mlp.d_expert', int)
_GROUPED: tuple[Part, ...] = (_GROUPS, HeadWidth(), _RMS_EPSILON)
_SWIGLU = FIXED | {'mlp.activation': MLPKind.SWIGLU}
_GEGLU = {'mlp.activation': MLPKind.GEGLU}
_TIED, _UNTIED = {'tie_embeddings': True}, {'tie_embeddings': False}
_NORMALIZED = {'mlp.normalize_gates': True}
_LOCAL = ('linear', 'none')

GPT2 = Architecture(
    name='gpt2',
    model_types=('gpt2',),
    fixed=FIXED
    | {
        'position': PositionKind.LEARNED,
        'norm': NormKind.LAYERNORM,
        'use_bias': True,
        'mlp.activation': MLPKind.GELU_TANH,
    },
    parts=(*_DENSE, Ungrouped(), DerivedHeadDim(), _EPSILON),
    tensors=_joined(_QKV),
)
_PAIRED = ('blk.{layer}.attn_q', 'blk.{layer}.attn_k')  # rotate neighbouring rows of a head
LLAMA = Architecture(
    name='llama',
    model_types=('llama', 'mistral'),
    tensors=TENSORS,
    fixed=_SWIGLU,
    parts=(*_DENSE, *_GROUPED, Rope()),
    by_head=_PAIRED,
    in_pairs=_PAIRED,
    factors=True,
)
MIXTRAL = Architecture(
    name='llama',
    model_types=('mixtral',),
    mlp=MixtureOfExperts,
    tensors=TENSORS,
    fixed=_SWIGLU | _NORMALIZED,
    parts=(*_EXPERTS, _D_EXPERT, *_GROUPED, Rope()),
    by_head=_PAIRED,
    in_pairs=_PAIRED,
    factors=True,
)
QWEN2 = Architecture(
    name='qwen2',
    model_types=('qwen2',),
    tensors=TENSORS,
    fixed=_SWIGLU | {'attention.qkv_bias': True},
    parts=(*_DENSE, *_GROUPED, Rope()),
)
QWEN3 = Architecture(
    name='qwen3',
    model_types=('qwen3',),
    tensors=TENSORS,
    fixed=_SWIGLU | {'attention.qk_norm': QKNorm.HEAD},
    parts=(*_DENSE, *_GROUPED, Rope()),
)
QWEN3_MOE = Architecture(
    name='qwen3moe',
    model_types=('qwen3_moe',),
    mlp=MixtureOfExperts,
    tensors=TENSORS,
    fixed=_SWIGLU | _NORMALIZED | {'attention.qk_norm': QKNorm.HEAD},
    parts=(
        *_EXPERTS,
        Key('feed_forward_length', 'd_ff', int, 0),
        Key('expert_feed_forward_length', 'mlp.d_expert', int),
        *_GROUPED,
        Rope(),
    ),
)
GEMMA2 = Architecture(
    name='gemma2',
    model_types=('gemma2',),
    tensors=TENSORS,
    fixed=gemma2.GEMMA2.fixed | _GEGLU | _TIED,
    parts=(
        *_DENSE,
        *_GROUPED,
        Key('attn_logit_softcapping', 'attention_soft_cap', float, 50.0),
        Key('final_logit_softcapping', 'output_soft_cap', float, 30.0),
        Positive('attention_soft_cap'),
        Positive('output_soft_cap'),
        FixedQueryScalar(wide_layers=46),
        SomeWindows(default=4096, interval=2),
        Rope(kinds=_LOCAL),
    ),
)
GEMMA3 = Architecture(
    name='gemma3',
    model_types=('gemma3_text',),
    tensors=TENSORS,
    fixed=gemma3.GEMMA3.fixed | _GEGLU,
    parts=(
        *_DENSE,
        *_GROUPED,
        Key('final_logit_softcapping', 'output_soft_cap', float, 0.0),
        FixedQueryScalar(wide_layers=62),
        SomeWindows(default=0, interval=6),
        Rope(kinds=_LOCAL),
        LocalRope(),
    ),
)
OLMO2 = Architecture(
    name='olmo2',
    model_types=('olmo2',),
    tensors=TENSORS,
    fixed=olmo2.OLMO2.fixed | {'mlp.activation': MLPKind.SWIGLU} | _UNTIED,
    parts=(*_DENSE, *_GROUPED, DerivedHeadDim(), Rope()),
)
OLMOE = Architecture(
    name='olmoe',
    model_types=('olmoe',),
    mlp=MixtureOfExperts,
    tensors=TENSORS,
    fixed=_SWIGLU | _UNTIED | {'attention.qk_norm': QKNorm.FULL, 'mlp.normalize_gates': False},
    parts=(
        *_EXPERTS,
        _D_EXPERT,
        Ungrouped(),
        HeadWidth(),
        _RMS_EPSILON,
        DerivedHeadDim(),
        Rope(),
    ),
)
PHI3 = Architecture(
    name='phi3',
    model_types=('phi3',),
    fixed=_SWIGLU,
    parts=(*_DENSE, *_GROUPED, DerivedHeadDim(), UnusedWindow(), Rope(partial=True)),
    tensors=_joined(_QKV | _GATE_UP),
)
SMOLLM3 = Architecture(
    name='smollm3',
    model_types=('smollm3',),
    tensors=TENSORS,
    fixed=_SWIGLU,
    parts=(*_DENSE, *_GROUPED, RotatesAllButEach(interval=4), Rope()),
    by_head=_PAIRED,
    in_pairs=_PAIRED,
)
GPT_NEOX = Architecture(
    name='gptneox',
    model_types=('gpt_neox',),
    fixed=gpt_neox.GPT_NEOX.fixed
    | _UNTIED
    | {
        'mlp.activation': MLPKind.GELU_TANH,
        'attention.qkv_bias': True,
        'attention.output_bias': True,
    },
    parts=(
        *_DENSE,
        Ungrouped(),
        HeadWidth(),
        DerivedHeadDim(),
        _EPSILON,
        Key(
            'use_parallel_residual',
            'parallel_residual',
            {True: ParallelResidual.TWO_NORMS, False: ParallelResidual.OFF},
        ),
        Rope(partial=True),
    ),
    tensors=_joined(_QKV),
)
STABLELM = Architecture(
    name='stablelm',
    model_types=('stablelm',),
    tensors=TENSORS,
    fixed=stablelm.STABLELM.fixed | {'mlp.activation': MLPKind.SWIGLU} | _UNTIED,
    parts=(
        *_DENSE,
        _GROUPS,
        HeadWidth(),
        DerivedHeadDim(),
        _EPSILON,
        Key(
            'use_parallel_residual',
            'parallel_residual',
            {True: ParallelResidual.ONE_NORM, False: ParallelResidual.OFF},
        ),
        Rope(partial=True),
    ),
    present={'attention.qkv_bias': 'blk.0.attn_q.bias'},
)
_DEEPSEEK_PAIRED = tuple(f'{_LAYER}attn_{name}' for name in ('q', 'q_b', 'kv_a_mqa'))
DEEPSEEK2 = Architecture(
    name='deepseek2',
    model_types=('deepseek_v2',),
    attention=Latent,
    mlp=MixtureOfExperts,
    fixed=_SWIGLU,
    parts=(
        *_EXPERTS,
        Key('feed_forward_length', 'd_ff', int),
        Key('expert_feed_forward_length', 'mlp.d_expert', int),
        SharedExperts('expert_shared_count'),
        FirstLayersDense('leading_dense_block_count'),
        Key('expert_weights_scale', 'mlp.gate_scale', float, 1.0),
        Key('expert_weights_norm', 'mlp.normalize_gates', bool, False),
        Softmax(),
        Key('attention.q_lora_rank', 'attention.q_rank', int, 0),
        Key('attention.kv_lora_rank', 'attention.kv_rank', int),
        LatentRope(),
        LatentHeads(),
        _RMS_EPSILON,
    ),
    tensors={theirs: ours for theirs, ours in TENSORS.items() if 'query_norm' not in ours}
    | {
        f'{_LAYER}attn_q_a': 'blocks/attention/query_down',
        f'{_LAYER}attn_q_a_norm': 'blocks/attention/query_norm',
        f'{_LAYER}attn_q_b': 'blocks/attention/query_up',
        f'{_LAYER}attn_kv_a_mqa': 'blocks/attention/kv_down',
        f'{_LAYER}attn_kv_a_norm': 'blocks/attention/kv_norm',
        f'{_LAYER}attn_kv_b': 'blocks/attention/kv_up',  # a file may store it in two parts
    },
    by_head=_DEEPSEEK_PAIRED[:2],
    in_pairs=_DEEPSEEK_PAIRED,
)
ARCHITECTURES = (
    GPT2,
    LLAMA,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    MIXTRAL,
    QWEN3_MOE,
    OLMOE,
    OLMO2,
    PHI3,
    SMOLLM3,
    GPT_NEOX,
    STABLELM,
    DEEPSEEK2,
)
NAMES = tuple(dict.fromkeys(architecture.name for architecture in ARCHITECTURES))


def find(name: str, metadata: Mapping[str, Any]) -> Architecture:
    """Returns the architecture of a file; two have one name if one of them has experts."""
    experts = bool(metadata.get('expert_count'))
    found = [each for each in ARCHITECTURES if each.name == name]
    return next((each for each in found if (each.mlp is MixtureOfExperts) == experts), found[0])


def choose(model: ModelConfig) -> Architecture:
    """Returns the first architecture that expresses a model.

    Raises:
        UserError: there is none; the message names the setting that llama.cpp lacks.
    """
    for architecture in ARCHITECTURES:
        if not architecture.obstacle(model):
            return architecture
    family = choose_family(model).model_types[0]
    for architecture in ARCHITECTURES:
        if family in architecture.model_types:
            reason = architecture.obstacle(model)
            raise UserError(
                f"llama.cpp's {architecture.name} has no {reason}; --format hf takes it"
            )
    raise UserError(f'--format gguf has no {family}; --format hf takes it')
