"""The SmolLM3 family: SmolLM3ForCausalLM.

Hugging Face 2025, https://huggingface.co/blog/smollm3: a Llama in which every fourth layer does not
rotate queries and keys (Yang et al. 2025, https://arxiv.org/abs/2501.18795).
"""

import dataclasses
from typing import Any, ClassVar

from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig
from gpt_jax.weights.config_parts import Key, Part, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.layer_parts import (
    LayerWindows,
    change_layers,
    kinds_of_layers,
    not_rotated,
    take_interval,
)
from gpt_jax.weights.llama import (
    ACTIVATION,
    ATTENTION_BIAS,
    EPSILON,
    FIXED,
    HEAD_DIM,
    KV_HEADS,
    SIZES,
    TENSORS,
)
from gpt_jax.weights.source import ConfigReader


@dataclasses.dataclass(frozen=True)
class RotatedLayers(Part):
    """The layers that rotate queries and keys.

    `no_rope_layers` has a 1 for each; without it, they are all but each
    `no_rope_layer_interval`-th.
    """

    of_layers: ClassVar[tuple[str, ...]] = ('rope',)

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the layers."""
        interval = take_interval(c, 'no_rope_layer_interval', 4)
        rotated = [int((layer + 1) % interval != 0) for layer in range(model.num_layers)]
        rotated = c.take_list('no_rope_layers', int, rotated)
        if len(rotated) != model.num_layers:
            raise UserError(
                f'{c.name} has {len(rotated)} no_rope_layers, which must be one for each of '
                f'{model.num_layers} layers'
            )
        kinds = zip(kinds_of_layers(model), rotated, strict=True)
        change_layers(model, [dataclasses.replace(kind, rope=bool(each)) for kind, each in kinds])

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        return {'no_rope_layers': [int(kind.rope) for kind in kinds_of_layers(model)]}


SMOLLM3 = DescribedFamily(
    model_type='smollm3',
    architecture='SmolLM3ForCausalLM',
    fixed=FIXED,
    parts=(
        *SIZES,
        KV_HEADS,
        HEAD_DIM,
        ACTIVATION,
        EPSILON,
        Key('tie_word_embeddings', 'tie_embeddings', bool, True),
        ATTENTION_BIAS,
        Key('mlp_bias', 'mlp.bias', bool, False),
        RotatedLayers(),
        LayerWindows(default=0, switched=True, slides=not_rotated),
        Rope(default_base=2e6),
    ),
    tensors=TENSORS,
    inert=('max_window_layers', 'pretraining_tp'),  # the family has no such keys
)
