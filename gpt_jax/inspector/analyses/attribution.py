"""Direct logit attribution: the parts whose sum is the logit of a token."""

import dataclasses
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.base import QUIET, Analysis, ShowProgress, check
from gpt_jax.inspector.inspection import Inspection, NamedArray, check_index
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.points import has_point, points_in
from gpt_jax.model.config import CommonConfig, ModelConfig, NormPlacement
from gpt_jax.model.gpt import output_table
from gpt_jax.model.layer_stack import layer_stacks, to_executed
from gpt_jax.model.norm import NORMS

POINTS = (
    'embedding',
    'residual_before',
    'residual_after',
    'attention.heads',
    'mlp_output',
    'final_norm',
    'logits',
)
OF_SOURCES = ('attention.weights', 'attention.value')
SHOWN = 12  # parts in the table for the terminal


@dataclasses.dataclass(frozen=True)
class Attribution(Analysis):
    """The contribution of each part of the model to the logit of a token at a position.

    With `against`, it is that to the difference of two logits. Their sum is `logit`.
    """

    name = 'attribution'
    title = 'Logit attribution'
    about = (
        'The logit of a token is a sum over what the embedding, every head and every MLP have '
        'written to the residual stream, as the final norm scales it in this pass. An output soft '
        'cap comes after the sum: logits here are those before it.'
    )
    source = (
        'Elhage et al. 2021, A Mathematical Framework for Transformer Circuits, '
        'https://transformer-circuits.pub/2021/framework'
    )
    pitfall = (
        'Direct effects only: what a head changes through later layers is booked on those. All '
        'logits can rise together and change nothing, so compare two tokens (against).'
    )

    position: int
    token: int
    token_text: str
    against: int  # -1: none
    against_text: str
    logit: float  # before the soft cap; with `against`, the difference of both
    soft_cap: float  # 0: none
    embedding: float
    position_embedding: float  # 0 where positions are not added to the embedding
    heads: NamedArray  # [layer, head]
    attention_biases: NamedArray  # [layer]: of the output projection and of a norm after it
    mlps: NamedArray  # [layer]
    norm_bias: float  # of the final norm
    sources: NamedArray | None  # [layer, head, source]; None where heads are no sum over sources
    # Parts of the logit of the token that comes after each position but the last:
    next_heads: NamedArray  # [position, layer, head]
    next_mlps: NamedArray  # [position, layer]
    next_sources: NamedArray | None  # [position, source]: of all heads, by the token they read

    @classmethod
    def obstacle(cls, inspector: Inspector) -> str:
        """Returns why the logit is no sum over heads; '' if it is."""
        config = inspector.config
        if config.norm_placement == NormPlacement.POST:
            return (
                f'config.model.norm_placement={config.norm_placement} normalizes the residual '
                'stream in every layer, so it is no sum of what the layers write'
            )
        if not has_point(config, 'blocks.0.attention.heads'):
            return "the attention has no point 'heads'; tap it before the output projection"
        return ''

    @classmethod
    def run(
        cls,
        inspector: Inspector,
        text: Text,
        *,
        inspection: Inspection | None = None,
        progress: ShowProgress = QUIET,
        token: int | str | None = None,
        position: int = -1,
        against: int | str | None = None,
    ) -> Self:
        """Attributes the logit of a token.

        Args:
          inspector: of the model.
          text: a text, or its ids.
          inspection: all points for this text, if they are known.
          progress: not used.
          token: the next token, an id or a text of one token; None: the model's prediction.
          position: the position after which it comes; -1: the last.
          against: another token, whose logit is subtracted.

        Raises:
            UserError: as `Analysis.run`, or `position`, `token` or `against` is none of the model.
        """
        del progress
        check(cls, inspector)
        config = inspector.config
        if inspection is None:
            points = points_in(config, (*POINTS, *OF_SOURCES))
            inspection = inspector.inspect(text, points=points)
        at = check_index('position', position, len(inspection.tokens))
        chosen = int(inspection.logits.values[at].argmax())
        if token is not None:
            chosen = find_token(inspector, 'token', token)
        other = -1 if against is None else find_token(inspector, 'against', against)
        read_D = _row(inspector, chosen) - (0 if other < 0 else _row(inspector, other))

        params = _parts(inspector.params, config)
        toward_D, norm_bias = _before_norm(inspection, at, config, params, read_D)
        embedded = inspection['embedding'].values[at].astype(np.float64)
        first = inspection['blocks.0.residual_before'].values[at]
        layers = _attribute_layers(inspection, at, config, params, toward_D)
        sources = [each.sources_HS for each in layers]
        coming = []
        for i, after in enumerate(inspection.tokens[1:]):
            reads_D, _ = _before_norm(inspection, i, config, params, _row(inspector, after))
            coming.append(_attribute_layers(inspection, i, config, params, reads_D))
        shape = (len(coming), config.num_layers)
        next_heads = np.array([[each.heads_H for each in parts] for parts in coming], np.float32)
        next_mlps = np.array([[each.mlp for each in parts] for parts in coming], np.float32)
        next_sources = None
        if sources[0] is not None:
            by_source = [sum(each.sources_HS.sum(0) for each in parts) for parts in coming]
            values = np.array(by_source, np.float32).reshape(len(coming), len(inspection.tokens))
            next_sources = NamedArray(values, ('position', 'source'))
        return cls(
            inspection.tokens,
            inspection.texts,
            position=at,
            token=chosen,
            token_text=inspector.token_texts([chosen])[0],
            against=other,
            against_text='' if other < 0 else inspector.token_texts([other])[0],
            logit=float(inspection['final_norm'].values[at] @ read_D),
            soft_cap=config.output_soft_cap,
            embedding=float(embedded @ toward_D),
            position_embedding=float((first - embedded) @ toward_D),
            heads=_stack([each.heads_H for each in layers], 'head'),
            attention_biases=_stack([each.bias for each in layers]),
            mlps=_stack([each.mlp for each in layers]),
            norm_bias=norm_bias,
            sources=None if sources[0] is None else _stack(sources, 'head', 'source'),
            next_heads=NamedArray(
                next_heads.reshape(*shape, config.num_heads), ('position', 'layer', 'head')
            ),
            next_mlps=NamedArray(next_mlps.reshape(shape), ('position', 'layer')),
            next_sources=next_sources,
        )

    @property
    def layers(self) -> NamedArray:
        """The contribution of each layer: heads, biases of attention, and MLP."""
        values = self.heads.values.sum(1) + self.attention_biases.values + self.mlps.values
        return NamedArray(values, ('layer',))

    @property
    def total(self) -> float:
        """The sum of all parts. It differs from `logit` by rounding, most in bfloat16."""
        return float(
            self.embedding
            + self.position_embedding
            + self.layers.values.sum(dtype=np.float64)
            + self.norm_bias
        )

    def parts(self) -> list[tuple[str, float]]:
        """Returns the parts by name; those that are 0 are left out."""
        parts = [('embedding', self.embedding), ('position embedding', self.position_embedding)]
        for layer, values in enumerate(self.heads.values):
            parts += [(f'layer {layer} head {head}', float(v)) for head, v in enumerate(values)]
            bias = float(self.attention_biases.values[layer])
            parts.append((f'layer {layer} attention bias', bias))
            parts.append((f'layer {layer} MLP', float(self.mlps.values[layer])))
        parts.append(('norm bias', self.norm_bias))
        return [(name, value) for name, value in parts if value]

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the largest parts, the rest and the sum."""
        of = f'logit of {self.token_text!r}'
        if self.against >= 0:
            of += f' less that of {self.against_text!r}'
        parts = sorted(self.parts(), key=lambda part: -abs(part[1]))
        shown, rest = parts[:SHOWN], parts[SHOWN:]
        if rest:
            shown.append((f'{len(rest)} more', sum(value for _, value in rest)))
        shown.append(('sum', self.total))
        return [('part', of), *((name, f'{value:+.4f}') for name, value in shown)]


class FrozenNorm(NamedTuple):
    """A norm with the statistics of one vector, which makes it linear but for its bias."""

    gain_D: np.ndarray
    bias_D: np.ndarray
    centred: bool

    @classmethod
    def of(cls, config: CommonConfig, params: dict[str, Any], x_D: np.ndarray) -> 'FrozenNorm':
        """Returns a norm of the model as it acts on `x_D`."""
        x_D, centred = np.asarray(x_D, np.float64), NORMS[config.norm].centred
        scale_D = np.asarray(params['scale'], np.float64) + config.norm_zero_centered
        bias_D = np.asarray(params.get('bias', np.zeros_like(scale_D)), np.float64)
        if centred:
            x_D = x_D - x_D.mean()
        return cls(scale_D / np.sqrt((x_D**2).mean() + config.norm_epsilon), bias_D, centred)

    def pull_back(self, direction_D: np.ndarray) -> np.ndarray:
        """Returns the direction before the norm that `direction_D` after it reads."""
        direction_D = self.gain_D * direction_D
        return direction_D - direction_D.mean() if self.centred else direction_D


class _Layer(NamedTuple):
    heads_H: np.ndarray
    bias: float
    mlp: float
    sources_HS: np.ndarray | None


def _before_norm(
    inspection: Inspection,
    at: int,
    config: ModelConfig,
    params: dict[str, Any],
    read_D: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Returns what `read_D` reads before the final norm, and its part of the norm's bias."""
    if not config.final_norm:
        return read_D, 0.0
    last = inspection[f'blocks.{config.num_layers - 1}.residual_after'].values[at]
    norm = FrozenNorm.of(config, params['final_norm'], last)
    return norm.pull_back(read_D), float(norm.bias_D @ read_D)


def _attribute_layers(
    inspection: Inspection,
    at: int,
    config: ModelConfig,
    params: dict[str, Any],
    toward_D: np.ndarray,
) -> list[_Layer]:
    """Returns the contributions of all layers at a position along `toward_D`."""
    return [
        _attribute_layer(
            inspection,
            layer,
            at,
            config.of_layer(layer),
            block=block,
            toward_D=toward_D,
        )
        for layer, block in enumerate(params['blocks'])
    ]


def _attribute_layer(
    inspection: Inspection,
    layer: int,
    at: int,
    config: ModelConfig,
    *,
    block: dict[str, Any],
    toward_D: np.ndarray,
) -> _Layer:
    """Returns the contributions of a layer along `toward_D` of the residual stream."""
    written, mlp = f'blocks.{layer}.mlp_output', 0.0
    if written in inspection.points:
        mlp = float(inspection[written].values[at] @ toward_D)
    output = block['attention']['output']
    kernel_HKD = np.asarray(output['kernel'], np.float64)
    bias_D = np.asarray(output.get('bias', np.zeros_like(toward_D)), np.float64)
    heads_HK = inspection[f'blocks.{layer}.attention.heads'].values[at].astype(np.float64)
    bias = 0.0
    if 'attention_post_norm' in block:
        written_D = np.einsum('HK,HKD->D', heads_HK, kernel_HKD) + bias_D
        norm = FrozenNorm.of(config, block['attention_post_norm'], written_D)
        bias = float(norm.bias_D @ toward_D)
        toward_D = norm.pull_back(toward_D)
    read_HK = kernel_HKD @ toward_D
    heads_H = (heads_HK * read_HK).sum(-1)
    sources_HS = _by_source(inspection, layer, at, read_HK=read_HK, heads_H=heads_H)
    return _Layer(heads_H, bias + float(bias_D @ toward_D), mlp, sources_HS)


def _by_source(
    inspection: Inspection, layer: int, at: int, *, read_HK: np.ndarray, heads_H: np.ndarray
) -> np.ndarray | None:
    """Returns weights times values along `read_HK`, or None where that does not make the heads."""
    names = [f'blocks.{layer}.{each}' for each in OF_SOURCES]
    if not all(name in inspection.points for name in names):
        return None
    weights_HLS, value_SGK = (inspection[name].values for name in names)
    (H, K), (_, G, width) = read_HK.shape, value_SGK.shape
    if len(weights_HLS) != H or H % G or width != K:
        return None
    value_SHK = value_SGK.repeat(H // G, 1)
    sources_HS = weights_HLS[:, at] * np.einsum('SHK,HK->HS', value_SHK, read_HK)
    rounding_H = 0.02 * np.abs(sources_HS).sum(-1) + 1e-6  # of bfloat16
    fits = np.abs(sources_HS.sum(-1) - heads_H) <= rounding_H
    return sources_HS if fits.all() else None


def _parts(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Returns the parameters that are needed; `blocks` are those of each layer in order."""
    needed = {
        stack.name: {
            'attention': {'output': params[stack.name]['attention']['output']},
            **{k: v for k, v in params[stack.name].items() if k == 'attention_post_norm'},
        }
        for stack in layer_stacks(config)
    }
    blocks = to_executed(needed, config, scan=False)['blocks']
    blocks = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), blocks)
    return {
        'final_norm': params.get('final_norm'),
        'blocks': [blocks[f'layer_{layer}'] for layer in range(config.num_layers)],
    }


def _row(inspector: Inspector, token: int) -> np.ndarray:
    """Returns the row of a token in the output table, rounded as the model does."""
    row = output_table(inspector.params, inspector.config)[token].astype(
        inspector.config.precision.compute
    )
    return np.asarray(row, np.float64)


def _stack(values: list[Any], *dims: str) -> NamedArray:
    return NamedArray(np.asarray(values, np.float32), ('layer', *dims))


def find_token(inspector: Inspector, key: str, token: int | str) -> int:
    """Returns the id of a token that is given as an id or as its text.

    Raises:
        UserError: the text is not one token, or the id is out of range; names `key`.
    """
    if isinstance(token, str):
        ids = inspector.tokenizer.encode(token, continues=True)
        if len(ids) != 1:
            raise UserError(f'{key}={token!r} is {len(ids)} tokens; give one, or its id')
        token = ids[0]
    return check_index(key, token, inspector.config.vocab_size)
