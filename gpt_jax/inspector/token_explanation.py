"""The reasons for one token of a text, for pages that ask again and again."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.ablation import Ablation
from gpt_jax.inspector.analyses.attribution import Attribution
from gpt_jax.inspector.analyses.base import Analysis
from gpt_jax.inspector.analyses.lens import Lens
from gpt_jax.inspector.inspection import Inspection
from gpt_jax.inspector.inspector import Inspector
from gpt_jax.inspector.points import points_in
from gpt_jax.inspector.token_attention import pad_text

POINTS = (
    'embedding',
    'residual_before',
    'residual_after',
    'attention.heads',
    'attention_output',
    'mlp_output',
    'final_norm',
    'logits',
)
ANALYSES: dict[str, type[Analysis]] = {each.name: each for each in (Lens, Attribution, Ablation)}


class TokenExplanation:
    """Analyses of the prediction of a token, as JSON; may be called from any thread.

    Texts are padded at their end, which no token before sees, so that few programs are compiled.
    The forward pass of the latest text is kept.
    """

    def __init__(self, inspector: Inspector):
        self._inspector = inspector
        self._lock = threading.Lock()
        self._padded: list[int] = []
        self._inspection: Inspection | None = None

    def __call__(
        self, tokens: Sequence[int], position: int, names: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Returns what analyses say about the token at `position`, by the name of the analysis.

        Of a text longer than the context, its last tokens up to this one are seen. An analysis
        that does not apply to the model has an `obstacle`, which says why.

        Raises:
            UserError: no token stands before this one.
        """
        start = max(0, position + 1 - self._inspector.config.max_seq_len)
        at = position - start - 1  # the position that predicts the token
        if at < 0:
            raise UserError(f'position={position} is the first token, which nothing predicts')
        with self._lock:
            return {name: self._explain(name, tokens[start : position + 1], at) for name in names}

    def _explain(self, name: str, seen: Sequence[int], at: int) -> dict[str, Any]:
        if obstacle := ANALYSES[name].obstacle(self._inspector):
            return {'obstacle': obstacle}
        inspection = self._inspect(seen)
        answer = {'lens': self._lens, 'attribution': self._attribution, 'ablation': self._ablation}
        return answer[name](inspection, at)

    def _inspect(self, seen: Sequence[int]) -> Inspection:
        """Returns the points for a text and its padding."""
        padded = pad_text(seen, self._inspector.config.max_seq_len)
        if self._inspection is None or self._padded != padded:
            points = points_in(self._inspector.config, POINTS)
            self._inspection = self._inspector.inspect(padded, points=points)
            self._padded = padded
        return self._inspection

    def _lens(self, inspection: Inspection, at: int) -> dict[str, Any]:
        lens = Lens.run(self._inspector, inspection.tokens, inspection=inspection, count=1)
        stages = []
        for stage, (token,) in enumerate(lens.choices.values[:, at]):
            stages.append(
                {
                    'name': f'layer {stage - 1}' if stage else 'embedding',
                    'id': int(token),
                    'label': lens.vocabulary[str(token)],
                    'probability': float(lens.probabilities.values[stage, at, 0]),
                    'rank_of_token': int(lens.next_rank.values[stage, at]),
                    'probability_of_token': float(lens.next_probability.values[stage, at]),
                }
            )
        return {'stages': stages}

    def _attribution(self, inspection: Inspection, at: int) -> dict[str, Any]:
        token = inspection.tokens[at + 1]
        # The analysis also attributes every token of its text: here that is one position.
        here = Inspection(
            inspection.tokens[at : at + 1],
            inspection.texts[at : at + 1],
            {
                name: values[_slices(inspection, name, at)]
                for name, values in inspection.arrays.items()
            },
            {name: inspection.points[name] for name in inspection.arrays},
            inspection.num_layers,
        )
        found = Attribution.run(self._inspector, here.tokens, inspection=here, token=token)
        return {'logit': found.logit, 'soft_cap': found.soft_cap, 'parts': _named(found.parts())}

    def _ablation(self, inspection: Inspection, at: int) -> dict[str, Any]:
        found = Ablation.run(self._inspector, inspection.tokens, inspection=inspection)
        logits = inspection.logits.values[at].astype(np.float64)
        most = logits.max()
        logprob = logits[inspection.tokens[at + 1]] - most - np.log(np.exp(logits - most).sum())
        captured, parts = inspection.arrays, []
        for layer in range(inspection.num_layers):
            if f'blocks.{layer}.attention.heads' in captured:
                losses = found.head_loss_by_position.values[layer, :, at]
                parts += [(f'layer {layer} head {head}', -loss) for head, loss in enumerate(losses)]
            parts.append(
                (f'layer {layer} attention', -found.attention_loss_by_position.values[layer, at])
            )
            if f'blocks.{layer}.mlp_output' in captured:
                parts.append((f'layer {layer} MLP', -found.mlp_loss_by_position.values[layer, at]))
        return {'logprob': float(logprob), 'parts': _named(parts)}


def _slices(inspection: Inspection, name: str, at: int) -> tuple[slice, ...]:
    """Returns the index of a position in the values of a point."""
    dims = inspection.points[name].dims
    return tuple(slice(at, at + 1) if dim == 'position' else slice(None) for dim in dims)


def _named(parts: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{'name': name, 'value': float(value)} for name, value in parts]
