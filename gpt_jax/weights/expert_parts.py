"""Parts of families with a mixture of experts: keys of the router, and names of tensors."""

import dataclasses
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
    """The weight of the router's loss, `router_aux_loss_coef`; 0 without one."""

    default: float = 0.001

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knob."""
        model.mlp.balance_loss = c.take_float('router_aux_loss_coef', self.default)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        has_loss = model.mlp.balance == Balance.LOSS
        return {'router_aux_loss_coef': model.mlp.balance_loss if has_loss else 0.0}

    def capabilities(self) -> dict[str, Any]:
        """Returns the knobs of losses, which change no logit; biases of the router would."""
        free = {f'mlp.{knob}': ANY for knob in ('balance_loss', 'bias_step', 'router_z_loss')}
        return {'mlp.balance': (Balance.LOSS, Balance.NONE)} | free


@dataclasses.dataclass(frozen=True)
class DenseLayers(Part):
    """The layers without experts: `mlp_only_layers`, and all but each `decoder_sparse_step`-th."""

    of_layers: ClassVar[tuple[str, ...]] = ('mlp',)

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Gives these layers an MLP with the activation of the experts, which must be set."""
        step = take_interval(c, 'decoder_sparse_step', 1)
        dense = {*c.take_list('mlp_only_layers', int, [])}
        change_layers(
            model,
            [
                dataclasses.replace(kind, mlp=self._mlp(model))
                if layer in dense or (layer + 1) % step
                else kind
                for layer, kind in enumerate(kinds_of_layers(model))
            ],
        )

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys."""
        dense = [layer for layer, mlp in enumerate(model.mlps) if isinstance(mlp, Dense)]
        return {'decoder_sparse_step': 1, 'mlp_only_layers': dense}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the MLP of a layer if the keys do not express it."""
        expressed = (freeze(model.mlp), freeze(self._mlp(model)))
        for mlp in model.mlps:
            if freeze(mlp) not in expressed:
                return f'config.model.layer_kinds with mlp={mlp}'
        return ''

    def _mlp(self, model: ModelConfig) -> Dense:
        return Dense(activation=model.mlp.activation)


def expert_tensors(module: str, *, gate: str, up: str, down: str) -> dict[str, str]:
    """Returns the names of a layer's router and experts, below a torch module of that name."""
    experts = f'{_BLOCK}{module}.experts.{{expert}}.'
    return {
        f'{_BLOCK}{module}.gate': 'blocks/mlp/router',
        f'{experts}{gate}': 'blocks/mlp/gate',
        f'{experts}{up}': 'blocks/mlp/up',
        f'{experts}{down}': 'blocks/mlp/down',
    }
