"""The logit lens: the prediction as it stands after each layer."""

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.config_tree import freeze
from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress
from gpt_jax.inspector.analyses.predictions import Predictions, describe_logits, texts_by_id
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import GPT

COUNT = 5  # tokens listed per layer and position


@dataclasses.dataclass(frozen=True)
class Lens(Analysis):
    """The next tokens that the residual stream gives after each layer.

    Stage 0 is the residual stream before layer 0, and stage i the one after layer i - 1.
    """

    name = 'lens'
    title = 'Logit lens'
    about = (
        'The final norm and the output layer, applied to the residual stream after each layer: the '
        'prediction as it would be if the model stopped there. The last row is its own.'
    )
    source = (
        'nostalgebraist 2020, '
        'https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens'
    )
    pitfall = (
        'Earlier layers need not use the directions that the output layer reads, so an unclear row '
        'does not mean that nothing is known yet (tuned lens: Belrose et al. 2023, '
        'arXiv:2303.08112).'
    )

    choices: NamedArray  # [stage, position, choice]: ids, the most probable first
    probabilities: NamedArray  # [stage, position, choice]
    entropy: NamedArray  # [stage, position], in bits
    next_rank: NamedArray  # [stage, position] of the actual next token; none for the last position
    next_probability: NamedArray  # as next_rank
    vocabulary: dict[str, str]  # texts of the ids

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
        count: int = COUNT,
    ) -> Self:
        """Returns the lens of a text; `count` tokens per layer and position."""
        del progress
        points = ['residual_before', 'residual_after']
        inspection = inspection or inspector.inspect(text, points=points)
        first = inspection['blocks.0.residual_before'].values
        residual = np.concatenate([first[None], inspection['residual_after'].values])
        tokens = jnp.asarray(inspection.tokens)
        config = freeze(inspector.config)
        read = _read(config, inspector.params, residual, tokens, count)
        read = Predictions(*map(np.asarray, read))
        place = ('stage', 'position')
        return cls(
            inspection.tokens,
            inspection.texts,
            choices=NamedArray(read.ids, (*place, 'choice')),
            probabilities=NamedArray(read.probabilities, (*place, 'choice')),
            entropy=NamedArray(read.entropy, place),
            next_rank=NamedArray(read.rank, place),
            next_probability=NamedArray(np.exp(-read.loss), place),
            vocabulary=texts_by_id(inspector, read.ids.ravel()),
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the prediction after the last token, and means over the text, by stage."""
        rows = [('after', 'top prediction', 'probability', 'mean entropy', 'median rank of next')]
        for stage, (ids, shares) in enumerate(
            zip(self.choices.values[:, -1], self.probabilities.values[:, -1], strict=True)
        ):
            ranks = self.next_rank.values[stage]
            row = (
                f'layer {stage - 1}' if stage else 'embedding',
                repr(self.vocabulary[str(ids[0])]),
                f'{shares[0]:.1%}',
                f'{self.entropy.values[stage].mean():.2f} bits',
                f'{np.median(ranks):g}' if ranks.size else '-',
            )
            rows.append(row)
        return rows


def read_out(model: GPT, x: Float[Array, '... D']) -> Float[Array, '... V']:
    """Returns the logits of a residual stream; for `GPT.apply(…, method=read_out)`."""
    if model.config.final_norm:
        x, _ = model.final_norm(x)
    return model.logits(x)


@functools.partial(jax.jit, static_argnames=('config', 'count'))
def _read(
    config: ModelConfig,
    params: Any,
    residual_NLD: Float[Array, 'N L D'],
    tokens_L: Int[Array, 'L'],
    count: int,
) -> Predictions:
    """Returns the predictions of each stage, one after the other, so that one's logits exist."""
    model = GPT(config, flat=False)

    def read(x_LD: Float[Array, 'L D']) -> Predictions:
        x_BLD = x_LD[None].astype(jnp.dtype(config.precision.compute))
        logits_LV = model.apply({'params': params}, x_BLD, method=read_out)[0]
        return describe_logits(logits_LV, tokens_L, count)

    return jax.lax.map(read, residual_NLD)
