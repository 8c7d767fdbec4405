"""The OPT family: OPTForCausalLM.

Zhang et al. 2022, https://arxiv.org/abs/2205.01068: a GPT-3 with ReLU, whose table of positions
begins with two rows that no position uses. OPT-350M, whose embeddings are narrower than its blocks,
is refused.
"""

import dataclasses
from typing import Any

from gpt_jax.model.config import MLPKind, ModelConfig, NormKind, NormPlacement, PositionKind
from gpt_jax.weights.config_parts import DerivedHeadDim, Key, Part, Require, Same
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.source import ConfigReader

_NAME, _REMOVED = 'do_layer_norm_before', '_remove_final_layer_norm'


@dataclasses.dataclass(frozen=True)
class Norms(Part):
    """The place of the norms, which decides on the final one too."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets both knobs."""
        before, removed = c.take_bool(_NAME, True), c.take_bool(_REMOVED, False)
        model.norm_placement = NormPlacement.PRE if before else NormPlacement.POST
        model.final_norm = before and not removed

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns both keys."""
        before = model.norm_placement == NormPlacement.PRE
        return {_NAME: before, _REMOVED: before and not model.final_norm}

    def capabilities(self) -> dict[str, Any]:
        """Returns the two places."""
        return {
            'norm_placement': (NormPlacement.PRE, NormPlacement.POST),
            'final_norm': (True, False),
        }

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the final norm if the norms of the blocks already come last."""
        both = model.norm_placement == NormPlacement.POST and model.final_norm
        return 'config.model.final_norm=True with config.model.norm_placement=post' if both else ''


@dataclasses.dataclass(frozen=True)
class EmbeddingWidth(Part):
    """The width of the embeddings, which must be that of the blocks."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Checks the width, after d_model is read."""
        c.require('word_embed_proj_dim', model.d_model)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        return {'word_embed_proj_dim': model.d_model}


_LAYER = 'model.decoder.layers.{layer}.'
OPT = DescribedFamily(
    model_type='opt',
    architecture='OPTForCausalLM',
    fixed={
        'position': PositionKind.LEARNED,
        'norm': NormKind.LAYERNORM,
        'norm_epsilon': 1e-5,
        'norm_bias': True,
        'position_offset': 2,
        'attention_soft_cap': 0.0,
        'output_soft_cap': 0.0,
    },
    parts=(
        Key('vocab_size', 'vocab_size', int, 50272),
        Key('max_position_embeddings', 'max_seq_len', int, 2048),
        Key('num_hidden_layers', 'num_layers', int, 12),
        Key('num_attention_heads', 'num_heads', int, 12),
        Key('hidden_size', 'd_model', int, 768),
        Key('ffn_dim', 'd_ff', int, 3072),
        EmbeddingWidth(),
        Same('num_kv_heads', 'num_heads'),
        DerivedHeadDim(),
        Key(
            'activation_function',
            'mlp.activation',
            {
                'relu': MLPKind.RELU,
                'gelu': MLPKind.GELU,
                'gelu_new': MLPKind.GELU_TANH,
                'gelu_pytorch_tanh': MLPKind.GELU_TANH,
            },
        ),
        Key('enable_bias', 'use_bias', bool, True),
        Norms(),
        Key('dropout', 'dropouts.residual', float, 0.1),
        Key('attention_dropout', 'dropouts.attention', float, 0.0),
        Key('init_std', 'init.std', float, 0.02),
        Key('tie_word_embeddings', 'tie_embeddings', bool, True),
        Require('layer_norm_elementwise_affine', True),
        Require('layerdrop', 0.0),
        Require('activation_dropout', 0.0),
    ),
    tensors={
        'model.decoder.embed_tokens': 'embedding',
        'model.decoder.embed_positions': 'position',
        f'{_LAYER}self_attn.q_proj': 'blocks/attention/query',
        f'{_LAYER}self_attn.k_proj': 'blocks/attention/key',
        f'{_LAYER}self_attn.v_proj': 'blocks/attention/value',
        f'{_LAYER}self_attn.out_proj': 'blocks/attention/output',
        f'{_LAYER}fc1': 'blocks/mlp/up',
        f'{_LAYER}fc2': 'blocks/mlp/down',
        f'{_LAYER}self_attn_layer_norm': 'blocks/attention_norm',
        f'{_LAYER}final_layer_norm': 'blocks/mlp_norm',
        'model.decoder.final_layer_norm': 'final_norm',
        'lm_head': 'output',
    },
)
