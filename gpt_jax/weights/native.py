"""The family of this project's own folders: any architecture, in the stored layout.

config.json holds `ModelConfig`. The tensors are named by the parameters' paths, with dots.
"""

from typing import Any

import flax.linen as nn

from gpt_jax.config_tree import from_json, to_json
from gpt_jax.fingerprint import named_leaves
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import abstract_params
from gpt_jax.weights.layout import TensorLayout

MODEL_TYPES = ('gpt_jax',)
WITHOUT_WEIGHTS = ''
CAPABILITIES: dict[str, tuple[Any, ...]] = {}


def to_model(config: dict[str, Any], *, name: str) -> ModelConfig:
    """Returns the architecture that `from_model` wrote.

    Raises:
        UserError: a key is unknown or a value has the wrong type.
    """
    return from_json(config.get('model', {}), ModelConfig, key=f'{name}: model')


def from_model(model: ModelConfig) -> dict[str, Any]:
    """Returns the contents of config.json."""
    return {'model_type': 'gpt_jax', 'model': to_json(model)}


def obstacle(model: ModelConfig) -> str:
    """Returns '': every architecture is supported."""
    del model
    return ''


def layout(model: ModelConfig) -> list[TensorLayout]:
    """Returns every parameter by its path, stacked ones layer by layer."""
    params = nn.unbox(abstract_params(model))
    return [TensorLayout(_name(path), (path,)) for path in named_leaves(params)]


def _name(path: str) -> str:
    name = path.replace('/', '.')
    return name.replace('blocks.', 'blocks.{layer}.', 1) if path.startswith('blocks/') else name
