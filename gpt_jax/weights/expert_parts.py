"""Parts of families with a mixture of experts: keys of the router, and names of tensors."""

import dataclasses
from collections.abc import Collection
from typing import Any, ClassVar

from gpt_jax.config_tree import freeze
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.mlp import Dense
from gpt_jax.model.mlp.experts import Balance
from gpt_jax.weights.config_parts import Key, Part
from gpt_jax.weights.layer_parts import change_layers, kinds_of_layers, take_interval
from gpt_jax.weights.layout import ANY
from gpt_jax.weights.source import ConfigReader

_BLOCK = 'model.layers.{layer}.'
NORMALIZED = Key('norm_topk_prob', 'mlp.normalize_gates', bool, False)
# They change the loss, or add noise, in training alone.
INERT = ('output_router_logits', 'router_jitter_noise')


@dataclasses.dataclass(frozen=True)
class BalanceLoss(Part):
    """The weight of the router's loss; 0 without one."""

    default: float = 0.001
    name: str = 'router_aux_loss_coef'

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knob."""
        model.mlp.balance_loss = c.take_float(self.name, self.default)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        has_loss = model.mlp.balance == Balance.LOSS
        return {self.name: model.mlp.balance_loss if has_loss else 0.0}

    def capabilities(self) -> dict[str, Any]:
        """Returns the knobs of losses, which change no logit; biases of the router would."""
        free = {f'mlp.{knob}': ANY for knob in ('balance_loss', 'bias_step', 'router_z_loss')}
        return {'mlp.balance': (Balance.LOSS, Balance.NONE)} | free


class DenseLayers(Part):
    """The layers without experts; their MLP has the activation of the experts."""

    of_layers: ClassVar[tuple[str, ...]] = ('mlp',)

    def choose(self, c: ConfigReader, model: ModelConfig) -> Collection[int]:
        """Returns the layers that the keys name.

        Raises:
            UserError: a key has an invalid value; the message names it.
        """
        raise NotImplementedError

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Gives these layers their MLP, after the activation is set."""
        dense = self.choose(c, model)
        change_layers(
            model,
            [
                dataclasses.replace(kind, mlp=self._mlp(model)) if layer in dense else kind
                for layer, kind in enumerate(kinds_of_layers(model))
            ],
        )

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the MLP of a layer if it is neither the experts nor theirs without experts."""
        expressed = (freeze(model.mlp), freeze(self._mlp(model)))
        for mlp in model.mlps:
            if freeze(mlp) not in expressed:
                return f'config.model.layer_kinds with mlp={mlp}'
        return ''

    def _mlp(self, model: ModelConfig) -> Dense:
        return Dense(activation=model.mlp.activation)


class AnyDenseLayers(DenseLayers):
    """Those in `mlp_only_layers`, and all but each `decoder_sparse_step`-th."""

    def choose(self, c: ConfigReader, model: ModelConfig) -> Collection[int]:
        """Returns the layers of both keys."""
        step = take_interval(c, 'decoder_sparse_step', 1)
        between = {layer for layer in range(model.num_layers) if (layer + 1) % step}
        return between.union(c.take_list('mlp_only_layers', int, []))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys."""
        return {'decoder_sparse_step': 1, 'mlp_only_layers': _dense_layers(model)}


@dataclasses.dataclass(frozen=True)
class FirstLayersDense(DenseLayers):
    """The number of first layers without experts."""

    name: str = 'first_k_dense_replace'

    def choose(self, c: ConfigReader, model: ModelConfig) -> Collection[int]:
        """Returns these layers."""
        return range(c.take_int(self.name, 0))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        return {self.name: len(_dense_layers(model))}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns a layer without experts after one with experts."""
        dense = _dense_layers(model)
        if dense != [*range(len(dense))]:
            return f'config.model.layer_kinds with a dense layer {dense[-1]} after experts'
        return super().obstacle(model)


def _dense_layers(model: ModelConfig) -> list[int]:
    return [layer for layer, mlp in enumerate(model.mlps) if isinstance(mlp, Dense)]


def expert_tensors(module: str, *, gate: str, up: str, down: str) -> dict[str, str]:
    """Returns the names of a layer's router and experts, below a torch module of that name."""
    experts = f'{_BLOCK}{module}.experts.{{expert}}.'
    return {
        f'{_BLOCK}{module}.gate': 'blocks/mlp/router',
        f'{experts}{gate}': 'blocks/mlp/gate',
        f'{experts}{up}': 'blocks/mlp/up',
        f'{experts}{down}': 'blocks/mlp/down',
    }
