"""A family of transformers as a description, from which reading and writing follow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_jax.config_tree import set_value
from gpt_jax.model.attention import GroupedQuery
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.model.mlp import Dense
from gpt_jax.weights.config_keys import INERT_KEYS
from gpt_jax.weights.config_parts import Part
from gpt_jax.weights.layout import TensorLayout
from gpt_jax.weights.source import ConfigReader


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescribedFamily:
    """A family whose config.json consists of `parts` and whose tensors `tensors` names.

    `fixed` are the knobs that no key sets. `tensors` maps a torch module to ours, or to several
    that it joins; `{layer}` stands for the index of the layer. Modules that a model lacks are
    skipped, and biases follow from the model. Joined modules in `by_head` alternate: the rows of
    one head come before those of the next.
    """

    model_type: str
    architecture: str
    fixed: Mapping[str, Any]
    parts: Sequence[Part]
    tensors: Mapping[str, str | tuple[str, ...]]
    by_head: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()
    without_weights: str = ''

    @property
    def model_types(self) -> tuple[str, ...]:
        """The only model type."""
        return (self.model_type,)

    @property
    def output(self) -> str:
        """The name of the output layer's tensor."""
        return next(f'{theirs}.weight' for theirs, ours in self.tensors.items() if ours == 'output')

    @property
    def capabilities(self) -> dict[str, Any]:
        """Supported values by key below config.model."""
        capabilities = {key: (value,) for key, value in self.fixed.items()}
        capabilities |= {'attention': (GroupedQuery,), 'mlp': (Dense,)}
        for part in self.parts:
            capabilities |= part.capabilities()
        return capabilities

    def to_model(self, config: dict[str, Any], *, name: str) -> ModelConfig:
        """Returns the architecture that a config.json describes.

        Raises:
            UserError: a key or a value has no counterpart; the message names it.
        """
        c = ConfigReader(config, name=name)
        c.require('architectures', None, [self.architecture])
        model = ModelConfig()
        model.init.scale_residual = False
        for key, value in self.fixed.items():
            set_value(model, key, value)
        for part in self.parts:
            part.read(c, model)
        c.finish((*INERT_KEYS, *self.inert))
        return model

    def from_model(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the config.json of an architecture within `capabilities`."""
        config: dict[str, Any] = {
            'architectures': [self.architecture],
            'model_type': self.model_type,
            'pad_token_id': None,  # the default of a family may be outside a small vocabulary
        }
        for part in self.parts:
            config |= part.write(model)
        return config

    def obstacle(self, model: ModelConfig) -> str:
        """Returns an unsupported setting that `capabilities` does not cover; '' if none."""
        return next(filter(None, (part.obstacle(model) for part in self.parts)), '')

    def layout(self, model: ModelConfig) -> list[TensorLayout]:
        """Returns every tensor of a model."""
        declared = parameter_groups(model).declared
        entries = []
        for theirs, ours in self.tensors.items():
            modules = (ours,) if isinstance(ours, str) else ours
            groups = model.num_heads if theirs in self.by_head else 1
            for leaf in ('kernel', 'scale', 'table', 'bias'):
                paths = tuple(f'{module}/{leaf}' for module in modules)
                if paths[0] in declared:
                    name = f'{theirs}.{"bias" if leaf == "bias" else "weight"}'
                    is_matrix = leaf == 'kernel'
                    entries.append(TensorLayout(name, paths, transposed=is_matrix, groups=groups))
        return entries
