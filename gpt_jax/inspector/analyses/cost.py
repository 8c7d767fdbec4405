"""The cost of a text: memory of the cache, FLOPs and parameters."""

import dataclasses
from typing import Self

import numpy as np

from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.model.cache import cache_bytes_per_token
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import (
    count_active_params,
    count_multiplied_params,
    count_params,
    parameter_groups,
)
from gpt_jax.model.layer_stack import layer_stacks


@dataclasses.dataclass(frozen=True)
class Cost(Analysis):
    """The bytes and the FLOPs of the forward pass of a text, by layer."""

    name = 'cost'
    title = 'Cost'
    about = (
        'What a forward pass costs per token: 2 FLOPs for each weight that is multiplied, and the '
        'products of attention with every earlier token. The cache keeps keys and values.'
    )
    source = 'Chowdhery et al. 2022 (PaLM), appendix B, arXiv:2204.02311'
    pitfall = (
        'Formulas, not measurements: masked scores count, as is the convention, norms and '
        'activations do not, and time also depends on memory.'
    )

    cache_bytes: NamedArray  # [layer], of the whole text
    score_flops: NamedArray  # [layer], per token: attention's products without parameters
    weight_flops: NamedArray  # [layer], per token: everything else
    output_flops: float  # per token, outside the layers: the output layer
    parameters: int
    active_parameters: int  # those that a token uses: of experts, only the chosen ones

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
    ) -> Self:
        """Returns the costs of a text, without running the model; see `Analysis.run`."""
        del progress
        tokens = inspection.tokens if inspection else tuple(inspector.encode(text))
        config, length = inspector.config, len(tokens)
        cache = cache_bytes_per_token(config) * length // config.num_layers
        spans = [min(window or length, length) for window in config.windows]
        scores = [config.attention.flops(config, span) for span in spans]
        weights = weights_by_layer(config)
        flops = [2.0 * weights[i] + mlp.flops(config) for i, mlp in enumerate(config.mlps)]
        layers = ('layer',)
        return cls(
            tokens,
            inspector.token_texts(tokens),
            cache_bytes=NamedArray(np.full(config.num_layers, cache), layers),
            score_flops=NamedArray(np.array(scores), layers),
            weight_flops=NamedArray(np.array(flops), layers),
            output_flops=2.0 * (count_multiplied_params(config) - sum(weights)),
            parameters=count_params(config),
            active_parameters=count_active_params(config),
        )

    @property
    def flops_per_token(self) -> float:
        """Forward FLOPs per token of the whole model."""
        return float(self.score_flops.values.sum() + self.weight_flops.values.sum()) + (
            self.output_flops
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the sums over the layers."""
        scores, weights = self.score_flops.values.sum(), self.weight_flops.values.sum()
        return [
            ('cost', 'value'),
            ('parameters', f'{self.parameters:,}'),
            ('parameters per token', f'{self.active_parameters:,}'),
            ('cache of the text', f'{self.cache_bytes.values.sum():,} bytes'),
            ('FLOPs per token', f'{self.flops_per_token:.4g}'),
            ('  attention scores', f'{scores:.4g} ({scores / self.flops_per_token:.1%})'),
            ('  rest of the layers', f'{weights:.4g} ({weights / self.flops_per_token:.1%})'),
            ('  output layer', f'{self.output_flops:.4g}'),
        ]


def weights_by_layer(config: ModelConfig) -> list[float]:
    """Returns the weights of each layer that a token is multiplied with."""
    declared = parameter_groups(config).declared
    weights = [0.0] * config.num_layers
    for stack in layer_stacks(config):
        total = sum(
            each.value.size * each.active
            for path, each in declared.items()
            if path.startswith(f'{stack.name}/') and each.in_product
        )
        for layer in stack.layers:
            weights[layer] = total / len(stack.layers)
    return weights
