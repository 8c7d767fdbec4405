"""The Gemma 2 family: Gemma2ForCausalLM.

Gemma Team 2024, https://arxiv.org/abs/2408.00118: norms around each branch, whose scales are stored
less 1, GEGLU, scaled embeddings, capped scores and logits, windows in every second layer.
"""

import dataclasses
from typing import Any

from gpt_jax.model.config import MLPKind, ModelConfig, NormPlacement
from gpt_jax.weights.config_parts import ANY, Key, Part, Require, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.layer_parts import LayerWindows
from gpt_jax.weights.llama import ATTENTION_BIAS, FIXED, KV_HEADS, SIZES, TENSORS
from gpt_jax.weights.source import ConfigReader

_NAME, _KNOB = 'query_pre_attn_scalar', 'attention.query_pre_attn_scalar'


@dataclasses.dataclass(frozen=True)
class QueryScalar(Part):
    """The number whose root divides the scores; transformers takes a whole one."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knob."""
        model.attention.query_pre_attn_scalar = float(c.take_int(_NAME, 256))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        return {_NAME: int(model.attention.query_pre_attn_scalar or model.head_dim)}

    def capabilities(self) -> dict[str, Any]:
        """Returns any value."""
        return {_KNOB: ANY}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the knob if it is not whole."""
        value = model.attention.query_pre_attn_scalar
        return '' if value == int(value) else f'config.model.{_KNOB}={value}'


ACTIVATION = Key('hidden_activation', 'mlp.activation', {'gelu_pytorch_tanh': MLPKind.GEGLU})
_CHANGED = ('attention_soft_cap', 'output_soft_cap')  # by a key
_LAYER = 'model.layers.{layer}.'
GEMMA2 = DescribedFamily(
    model_type='gemma2',
    architecture='Gemma2ForCausalLM',
    fixed={key: value for key, value in FIXED.items() if key not in _CHANGED}
    | {
        'norm_placement': NormPlacement.SANDWICH,
        'norm_zero_centered': True,
        'scale_embedding': True,
    },
    parts=(
        *SIZES,
        KV_HEADS,
        Key('head_dim', 'head_dim', int, 256),
        ACTIVATION,
        Key('rms_norm_eps', 'norm_epsilon', float, 1e-6),
        Key('tie_word_embeddings', 'tie_embeddings', bool, True),
        Key('attn_logit_softcapping', 'attention_soft_cap', float, 50.0, null=True),
        Key('final_logit_softcapping', 'output_soft_cap', float, 30.0, null=True),
        ATTENTION_BIAS,
        QueryScalar(),
        LayerWindows(),
        Rope(),
        Require('use_bidirectional_attention', False),
    ),
    tensors=TENSORS
    | {
        f'{_LAYER}post_attention_layernorm': 'blocks/attention_post_norm',
        f'{_LAYER}pre_feedforward_layernorm': 'blocks/mlp_norm',
        f'{_LAYER}post_feedforward_layernorm': 'blocks/mlp_post_norm',
    },
    # Overruled by hidden_activation and sliding_window, and a choice of memory.
    inert=('hidden_act', 'sliding_window_size', 'cache_implementation'),
)
