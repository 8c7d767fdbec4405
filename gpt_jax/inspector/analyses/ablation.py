"""Ablation of every head, attention layer and MLP."""

import dataclasses
import functools
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress, top
from gpt_jax.inspector.analyses.predictions import next_losses
from gpt_jax.inspector.analyses.sweep import (
    activation_bytes,
    effects,
    is_chosen,
    split,
    sweep,
)
from gpt_jax.inspector.forward import Change, Start, forward
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.points import has_point, points_in
from gpt_jax.model.config import ModelConfig

HEADS, ATTENTION, MLP = 'attention.heads', 'attention_output', 'mlp_output'
WAYS = ('zero', 'mean')
SHOWN = 12  # rows of the table


class Effect(NamedTuple):
    """Measures of a forward pass, or their changes."""

    loss: Float[Array, '... L-1']  # of each token after the first
    logit: Float[Array, '...']  # of one token after the last position
    probability: Float[Array, '...']


@dataclasses.dataclass(frozen=True)
class Ablation(Analysis):
    """The change of the loss and of the prediction when one part of the model is taken out."""

    name = 'ablation'
    title = 'Ablation'
    about = (
        'Each head, each attention layer and each MLP is taken out alone: its output is set to '
        'zero, or to its mean over the positions. A rise of the loss means that the text needs it.'
    )
    source = 'Michel et al. 2019, arXiv:1905.10650; Olsson et al. 2022, arXiv:2209.11895'
    pitfall = (
        'A zero is an input that later layers never saw, so they may break rather than miss the '
        'part; other parts may also take over. Mean ablation is milder. One text is one sample.'
    )

    how: str  # 'zero' or 'mean'
    token: int  # the most probable next token of the model as it is
    token_text: str
    loss: float  # mean, in nats, of the model as it is; 0 for a single token
    logit: float  # of `token`
    probability: float
    # Changes by ablation:
    head_loss: NamedArray  # [layer, head]: mean over the text
    attention_loss: NamedArray  # [layer]
    mlp_loss: NamedArray
    head_logit: NamedArray
    attention_logit: NamedArray
    mlp_logit: NamedArray
    head_probability: NamedArray
    attention_probability: NamedArray
    mlp_probability: NamedArray
    # Position i is the loss of token i + 1.
    head_loss_by_position: NamedArray  # [layer, head, position]
    attention_loss_by_position: NamedArray  # [layer, position]
    mlp_loss_by_position: NamedArray

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
        how: str = 'zero',
    ) -> Self:
        """Ablates every part by itself; `how` is 'zero' or 'mean'. See `Analysis.run`."""
        if how not in WAYS:
            raise UserError(f'how={how!r} must be one of {", ".join(WAYS)}')
        config = freeze(inspector.config)
        if inspection is None:
            inspection = inspector.inspect(
                text,
                points=points_in(config, ('logits', 'residual_before', HEADS, ATTENTION, MLP)),
            )
        logits = inspection.logits.values
        token, tokens = int(logits[-1].argmax()), jnp.asarray(inspection.tokens)
        values = _replacements(inspection, how)
        whole = _measure(logits, tokens, token)

        def ablate(layer: int, indices: np.ndarray) -> Effect:
            start = Start(layer, inspection[f'blocks.{layer}.residual_before'].values)
            return _ablate(config, inspector.params, tokens, token, values, start, indices)

        change = sweep(
            ablate,
            _grid(config),
            wanted=_exists(config),
            bytes_each=activation_bytes(config, len(tokens)),
            progress=progress,
            description='ablation',
        )
        return cls(
            inspection.tokens,
            inspection.texts,
            how=how,
            token=token,
            token_text=inspector.token_texts([token])[0],
            loss=float(_mean(np.asarray(whole.loss))),
            logit=float(whole.logit),
            probability=float(whole.probability),
            **_arrays(config, change),
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the parts without which the loss rises most, or the prediction falls most."""
        parts = [
            (kind, index)
            for kind in ('head', 'attention', 'mlp')
            for index in np.ndindex(getattr(self, f'{kind}_loss').values.shape)
        ]
        effects = np.array([self._effects(*part) for part in parts])
        harm = effects[:, 0] if len(self.tokens) > 1 else -effects[:, 2]
        rows = [
            ('without', 'loss', f'logit of {self.token_text!r}', 'its probability'),
            ('(nothing)', f'{self.loss:.4f}', f'{self.logit:.3f}', f'{self.probability:.2%}'),
        ]
        for (i,) in top(harm, SHOWN):
            (kind, index), (loss, logit, probability) = parts[i], effects[i]
            if kind == 'mlp' and not effects[i].any():  # the layer has none
                continue
            name = f'{kind} {".".join(map(str, index))}'
            rows.append((name, f'{loss:+.4f}', f'{logit:+.3f}', f'{probability:+.2%}'))
        return rows

    def _effects(self, kind: str, index: tuple[int, ...]) -> list[float]:
        """Returns the changes of the loss, of the logit and of the probability by a part."""
        measures = ('loss', 'logit', 'probability')
        return [float(getattr(self, f'{kind}_{each}').values[index]) for each in measures]


def _grid(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    layers = config.num_layers
    return {HEADS: (layers, config.num_heads), ATTENTION: (layers,), MLP: (layers,)}


def _exists(config: ModelConfig) -> np.ndarray:
    """Returns which candidates exist: a layer may have no MLP."""
    parts = [
        np.full(shape[1:], has_point(config, f'blocks.{layer}.{point}')).ravel()
        for point, shape in _grid(config).items()
        for layer in range(config.num_layers)
    ]
    return np.concatenate(parts)


def _replacements(inspection: Inspection, how: str) -> dict[str, Any]:
    """Returns what an ablated point becomes: zero, or its mean over positions."""
    names = [
        f'blocks.{i}.{p}' for i in range(inspection.num_layers) for p in (HEADS, ATTENTION, MLP)
    ]
    names = [name for name in names if name in inspection.points]
    if how == 'zero':
        return dict.fromkeys(names, np.float32(0))
    return {name: inspection[name].values.mean(0, keepdims=True) for name in names}


@functools.partial(jax.jit, static_argnames='config')
def _ablate(
    config: ModelConfig,
    params: Any,
    tokens_L: Int[Array, 'L'],
    token: Int[Array, ''],
    values: dict[str, Any],
    start: Start,
    indices_C: Int[Array, 'C'],
) -> Effect:
    """Returns what the model's measures change without each of some parts."""

    def measure(index: Int[Array, '']) -> Effect:
        chosen = is_chosen(_grid(config), index)
        changes = {}
        for layer in range(config.num_layers):
            masks = {HEADS: chosen[HEADS][layer, :, None]}
            masks |= {point: chosen[point][layer] for point in (ATTENTION, MLP)}
            for point, mask in masks.items():
                name = f'blocks.{layer}.{point}'
                if name in values:
                    changes[name] = (Change(mask, values[name]),)
        logits = frozenset({'logits'})
        found = forward(config, params, tokens_L[None], changes, points=logits, start=start)
        return _measure(found['logits'][0], tokens_L, token)

    return effects(measure, _grid(config), indices_C)


def _measure(
    logits_LV: Float[Array, 'L V'], tokens_L: Int[Array, 'L'], token: Int[Array, ''] | int
) -> Effect:
    last = logits_LV[-1]
    probability = jnp.exp(last[token] - jax.nn.logsumexp(last))
    return Effect(next_losses(logits_LV, tokens_L), last[token], probability)


def _arrays(config: ModelConfig, change: Effect) -> dict[str, NamedArray]:
    """Returns the fields of changes by their names."""
    found = {}
    measures = change._asdict() | {'loss': _mean(change.loss), 'loss_by_position': change.loss}
    for measure, values in measures.items():
        for point, array in split(_grid(config), values).items():
            kind = {HEADS: 'head', ATTENTION: 'attention', MLP: 'mlp'}[point]
            dims = ('layer', *(('head',) if point == HEADS else ()))
            dims += ('position',) if measure == 'loss_by_position' else ()
            found[f'{kind}_{measure}'] = NamedArray(np.asarray(array), dims)
    return found


def _mean(loss: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis, or 0 where a single token has no loss."""
    return loss.sum(-1) / max(1, loss.shape[-1])
