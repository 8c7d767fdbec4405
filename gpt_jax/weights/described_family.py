"""Descriptions of other programs' models, from which reading and writing follow."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt_jax.config_tree import set_value
from gpt_jax.model.attention import Attention, GroupedQuery, Latent
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.model.layer_stack import Stack, layer_stacks
from gpt_jax.model.mlp import MLP, Dense
from gpt_jax.weights.config_keys import INERT_KEYS
from gpt_jax.weights.config_parts import Part
from gpt_jax.weights.layer_parts import differing_layers
from gpt_jax.weights.layout import ANY, TensorLayout
from gpt_jax.weights.source import ConfigReader


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """A kind of models of another program, whose keys and tensors have that program's names.

    `parts` are the keys of its config. `attention` and `mlp` are the kinds of these, and `fixed`
    are the knobs that no key sets. `tensors` maps a module of theirs to ours, or to several that it
    joins; `{layer}` and `{expert}` stand for indices. Modules that a model lacks are skipped, and
    biases follow from the model. Joined modules in `by_head` alternate: the rows of one head come
    before those of the next. The rotated outputs of those in `in_pairs`, of each head if they are
    also in `by_head`, are neighbouring pairs.
    """

    fixed: Mapping[str, Any]
    parts: Sequence[Part]
    tensors: Mapping[str, str | tuple[str, ...]]
    attention: type[Attention] = GroupedQuery
    mlp: type[MLP] = Dense
    by_head: tuple[str, ...] = ()
    in_pairs: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The name of the output layer's tensor."""
        return next(f'{theirs}.weight' for theirs, ours in self.tensors.items() if ours == 'output')

    @property
    def capabilities(self) -> dict[str, Any]:
        """Supported values by key below config.model."""
        capabilities: dict[str, Any] = {'attention': (self.attention,), 'mlp': (self.mlp,)}
        capabilities |= {key: (value,) for key, value in self.fixed.items()}
        for part in self.parts:
            capabilities |= part.capabilities()
        if self._of_layers:
            capabilities['layer_kinds'] = ANY
        return capabilities

    @property
    def _of_layers(self) -> list[str]:
        return [knob for part in self.parts for knob in part.of_layers]

    def read(self, c: ConfigReader) -> ModelConfig:
        """Returns the architecture that the keys of `parts` describe.

        Raises:
            UserError: a key or a value has no counterpart; the message names it.
        """
        model = ModelConfig(attention=self.attention(), mlp=self.mlp())
        model.init.scale_residual = False
        for key, value in self.fixed.items():
            set_value(model, key, value)
        for part in self.parts:
            part.read(c, model)
        return model

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys of an architecture within `capabilities`."""
        return {key: value for part in self.parts for key, value in part.write(model).items()}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns an unsupported setting that `capabilities` does not cover; '' if none."""
        obstacles = (part.obstacle(model) for part in self.parts)
        return differing_layers(model, self._of_layers) or next(filter(None, obstacles), '')

    def layout(self, model: ModelConfig) -> list[TensorLayout]:
        """Returns every tensor of a model."""
        return [
            entry
            for theirs, ours in self.tensors.items()
            for stack in (layer_stacks(model) if '{layer}' in theirs else (None,))
            for entry in self._tensors(
                model, theirs, (ours,) if isinstance(ours, str) else ours, stack
            )
        ]

    def _tensors(
        self, model: ModelConfig, theirs: str, ours: tuple[str, ...], stack: Stack | None
    ) -> Iterator[TensorLayout]:
        """Yields the tensors of one of their modules, in the layers of a stack."""
        declared = parameter_groups(model).declared
        is_expert = '{expert}' in theirs
        heads = model.num_kv_heads if ours[0].endswith('/key') else model.num_heads
        is_latent = isinstance(model.attention, Latent)
        rotated = model.attention.rope_dim if is_latent else model.head_dim
        for leaf in ('',) if is_expert else ('/kernel', '/scale', '/table', '/bias'):
            paths = tuple(f'{module}{leaf}' for module in ours)
            if stack:
                paths = tuple(path.replace('blocks', stack.name, 1) for path in paths)
            if paths[0] in declared:
                yield TensorLayout(
                    f'{theirs}.{"bias" if leaf == "/bias" else "weight"}',
                    paths,
                    transposed=is_expert or leaf == '/kernel',
                    groups=heads if theirs in self.by_head else 1,
                    pairs=rotated if theirs in self.in_pairs else 0,
                    layers=stack.layers if stack else (),
                    experts=declared[paths[0]].value.shape[1] if is_expert else 0,
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescribedFamily(Description):
    """A family of transformers, whose keys are those of config.json and whose modules are torch's.

    Keys of `inert` change no logit.
    """

    model_type: str
    architecture: str
    inert: tuple[str, ...] = ()
    without_weights: str = ''

    @property
    def model_types(self) -> tuple[str, ...]:
        """The only model type."""
        return (self.model_type,)

    def to_model(self, config: dict[str, Any], *, name: str) -> ModelConfig:
        """Returns the architecture that a config.json describes.

        Raises:
            UserError: a key or a value has no counterpart; the message names it.
        """
        c = ConfigReader(config, name=name)
        c.require('architectures', None, [self.architecture])
        model = self.read(c)
        c.finish((*INERT_KEYS, *self.inert))
        return model

    def from_model(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the config.json of an architecture within `capabilities`."""
        return {
            'architectures': [self.architecture],
            'model_type': self.model_type,
            'pad_token_id': None,  # the default of a family may be outside a small vocabulary
            **self.write(model),
        }
