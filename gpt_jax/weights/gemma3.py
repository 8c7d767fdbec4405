"""The text models of the Gemma 3 family: Gemma3ForCausalLM.

Gemma Team 2025, https://arxiv.org/abs/2503.19786: Gemma 2 with normalized queries and keys instead
of capped scores. Layers with a window rotate by a base of their own, without scaling.
"""

import dataclasses
from typing import Any, ClassVar

from gpt_jax.model.config import ModelConfig, QKNorm
from gpt_jax.model.options import RopeConfig
from gpt_jax.weights.config_parts import Key, Part, Require, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.gemma2 import ACTIVATION, GEMMA2, QueryScalar
from gpt_jax.weights.layer_parts import (
    LayerWindows,
    change_layers,
    kinds_of_layers,
    not_every_nth,
)
from gpt_jax.weights.llama import ATTENTION_BIAS, KV_HEADS, SIZES
from gpt_jax.weights.source import ConfigReader

_ROPE = Rope(kinds=('default', 'linear'))
_LOCAL_ROPE = Rope(kinds=('default',))
_GLOBAL, _LOCAL = 'full_attention', 'sliding_attention'


@dataclasses.dataclass(frozen=True)
class GlobalAndLocalRope(Part):
    """The rotary settings of layers without a window, and the base of layers with one.

    `rope_parameters` maps each kind of layer to its settings. Before transformers 5 they were keys
    of their own. Windows must be read before.
    """

    of_layers: ClassVar[tuple[str, ...]] = ('rope_base', 'rope_scaling')

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knobs of `config.model.rope` and of layers with a window."""
        base = c.take_float('rope_theta', 1e6)
        local_base = c.take_float('rope_local_base_freq', 1e4)
        scaling = c.take('rope_scaling', None)
        kinds = ConfigReader(c.take('rope_parameters', None) or {}, name=f'{c.name}, rope')
        values = kinds.take(_GLOBAL, None) or scaling or {}
        _ROPE.read_values(c, values, model, base=base)
        local = ModelConfig()
        _LOCAL_ROPE.read_values(c, kinds.take(_LOCAL, None) or {}, local, base=local_base)
        kinds.finish(())
        changed = {
            'rope_base': 0.0 if local.rope.base == model.rope.base else local.rope.base,
            'rope_scaling': 0.0 if model.rope.scaling == 1 else 1.0,
        }
        layers = kinds_of_layers(model)
        change_layers(
            model,
            [dataclasses.replace(kind, **changed) if kind.window else kind for kind in layers],
        )

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns `rope_parameters` of transformers 5, and the keys of older versions."""
        keys = _ROPE.write(model)
        local = next((rope for window, rope in _ropes(model) if window), None)
        base = local.base if local else 1e4
        parameters = {_GLOBAL: keys['rope_parameters']}
        parameters[_LOCAL] = {'rope_type': 'default', 'rope_theta': base}
        return keys | {'rope_parameters': parameters, 'rope_local_base_freq': base}

    def capabilities(self) -> dict[str, Any]:
        """Returns the values of `config.model.rope`."""
        return _ROPE.capabilities()

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the rotary settings of a layer if the keys do not express them."""
        bases = set()
        for window, rope in _ropes(model):
            if window:
                bases.add(rope.base)
            elif (rope.base, rope.scaling) != (model.rope.base, model.rope.scaling):
                return f'config.model.layer_kinds with rope_base={rope.base} and no window'
            if window and rope.scaling != 1:
                return f'config.model.layer_kinds with a window and rope_scaling={rope.scaling}'
        if len(bases) > 1:
            return f'config.model.layer_kinds with rope_base={max(bases)} and {min(bases)}'
        return _ROPE.obstacle(model)


def _ropes(model: ModelConfig) -> list[tuple[int, RopeConfig]]:
    """Returns the window and the rotary settings of each layer."""
    return [(window, model.of_layer(layer).rope) for layer, window in enumerate(model.windows)]


GEMMA3 = DescribedFamily(
    model_type='gemma3_text',
    architecture='Gemma3ForCausalLM',
    fixed=GEMMA2.fixed | {'attention.qk_norm': QKNorm.HEAD, 'attention_soft_cap': 0.0},
    parts=(
        *SIZES,
        KV_HEADS,
        Key('head_dim', 'head_dim', int, 256),
        ACTIVATION,
        Key('rms_norm_eps', 'norm_epsilon', float, 1e-6),
        Key('tie_word_embeddings', 'tie_embeddings', bool, True),
        Key('final_logit_softcapping', 'output_soft_cap', float, 0.0, null=True),
        ATTENTION_BIAS,
        QueryScalar(),
        LayerWindows(slides=not_every_nth),
        GlobalAndLocalRope(),
        Require('use_bidirectional_attention', False),
    ),
    tensors=GEMMA2.tensors,
    inert=(*GEMMA2.inert, '_sliding_window_pattern'),  # layer_types decides
)
