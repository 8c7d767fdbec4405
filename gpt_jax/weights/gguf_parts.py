"""Parts of a GGUF file's metadata, with the keys below `ARCHITECTURE.`."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, ClassVar

from gpt_jax.errors import UserError
from gpt_jax.model.config import LayerKind, ModelConfig
from gpt_jax.model.position import rotated_width, yarn_growth
from gpt_jax.weights.config_parts import ANY, Part, Same
from gpt_jax.weights.expert_parts import BalanceLoss
from gpt_jax.weights.gemma3 import GlobalAndLocalRope
from gpt_jax.weights.layer_parts import LayerWindows, Window, change_layers, kinds_of_layers
from gpt_jax.weights.source import ConfigReader

PATTERN = 'attention.sliding_window_pattern'
_SOFTMAX = 1  # llama.cpp's number of the function; 0: its default
_WINDOW, _LOCAL_BASE = 'attention.sliding_window', 'rope.freq_base_swa'


@dataclasses.dataclass(frozen=True)
class Ungrouped(Same):
    """As many heads of keys and values as of queries."""

    knob: str = 'num_kv_heads'
    other: str = 'num_heads'

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Checks the number of heads."""
        c.require('attention.head_count_kv', model.num_heads)


@dataclasses.dataclass(frozen=True)
class HeadWidth(Part):
    """The width of heads; by default heads fill d_model."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knob."""
        model.head_dim = c.take_int('attention.key_length', 0)
        c.require('attention.value_length', _head_width(model))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys."""
        return dict.fromkeys(('attention.key_length', 'attention.value_length'), model.head_dim)


@dataclasses.dataclass(frozen=True)
class Rope(Part):
    """The rotary settings; with `partial`, a part of each head may be rotated.

    Llama 3.1's scaling is no key but a tensor.
    """

    kinds: Collection[str] = ('linear', 'none', 'yarn')  # linear is llama.cpp's default too
    partial: bool = False

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knobs of `config.model.rope`; the width of heads must be read before."""
        rope = model.rope
        rope.base = c.take_float('rope.freq_base', 10000.0)
        self._read_width(c, model)
        kind = c.require('rope.scaling.type', *self.kinds)
        factor = c.take_float('rope.scaling.factor', 0.0)
        if kind != 'none' and factor:
            rope.scaling = factor
        original = c.take_int('rope.scaling.original_context_length', model.max_seq_len)
        if kind == 'yarn':
            rope.yarn, rope.original_seq_len = True, original
            rope.beta_fast = c.take_float('rope.scaling.yarn_beta_fast', 32.0)
            rope.beta_slow = c.take_float('rope.scaling.yarn_beta_slow', 1.0)
            c.require('rope.scaling.yarn_ext_factor', 1.0)
            c.require('rope.scaling.yarn_attn_factor', 1.0)
            self._read_factors(c, model)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys."""
        rope = model.rope
        keys: dict[str, Any] = {'rope.dimension_count': self._write_width(model)}
        keys['rope.freq_base'] = float(rope.base)
        if rope.yarn:
            return keys | {
                'rope.scaling.type': 'yarn',
                'rope.scaling.factor': float(rope.scaling),
                'rope.scaling.original_context_length': rope.original_seq_len,
                'rope.scaling.yarn_beta_fast': float(rope.beta_fast),
                'rope.scaling.yarn_beta_slow': float(rope.beta_slow),
                **self._write_factors(model),
            }
        if rope.scaling != 1 and not rope.original_seq_len:
            keys |= {'rope.scaling.type': 'linear', 'rope.scaling.factor': float(rope.scaling)}
        return keys

    def capabilities(self) -> dict[str, Any]:
        """Returns the values of `config.model.rope`."""
        free = ['rope.fraction'] if self.partial else []
        if 'yarn' not in self.kinds:
            return dict.fromkeys(free, ANY)
        return dict.fromkeys((*free, 'rope.yarn', 'rope.attention_factor'), ANY)

    def obstacle(self, model: ModelConfig) -> str:
        """Returns a setting of YaRN that llama.cpp fixes."""
        rope = model.rope
        if rope.yarn and not rope.yarn_truncate:
            return 'config.model.rope.yarn_truncate=False'
        if rope.attention_factor != 1 and not rope.yarn:
            return f'config.model.rope.attention_factor={rope.attention_factor}'
        return ''

    def _read_width(self, c: ConfigReader, model: ModelConfig) -> None:
        rope, width = model.rope, _head_width(model)
        if not self.partial:
            c.require('rope.dimension_count', width)
            return
        rotated = c.take_int('rope.dimension_count', width)
        rope.fraction = rotated / width if width else 1.0
        if int(width * rope.fraction) < rotated:  # rounded down
            rope.fraction = math.nextafter(rope.fraction, 1)

    def _write_width(self, model: ModelConfig) -> int:
        return rotated_width(model)

    # llama.cpp applies `1 + yarn_growth` of its own accord, as does transformers.
    def _read_factors(self, c: ConfigReader, model: ModelConfig) -> None:
        factor = c.take_float('rope.scaling.attn_factor', 1.0)
        model.rope.attention_factor = factor * (1 + yarn_growth(model.rope))

    def _write_factors(self, model: ModelConfig) -> dict[str, Any]:
        factor = model.rope.attention_factor / (1 + yarn_growth(model.rope))
        return {'rope.scaling.attn_factor': float(factor)}


@dataclasses.dataclass(frozen=True)
class SomeWindows(LayerWindows):
    """The layers with a sliding window, and its size: all but each `interval`-th, or a pattern."""

    interval: int = 0

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the windows."""
        window = c.take_int(_WINDOW, self.default)
        slides = c.take(PATTERN, self.interval)
        if type(slides) is int:
            slides = self._pattern(model, slides)
        if not isinstance(slides, list) or len(slides) != model.num_layers:
            raise UserError(
                f'{c.name} has {PATTERN}={str(slides)[:80]}, which must be a number or one value '
                f'for each of {model.num_layers} layers'
            )
        kinds = zip(kinds_of_layers(model), slides, strict=True)
        change_layers(
            model, [dataclasses.replace(kind, window=window if on else 0) for kind, on in kinds]
        )

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys; the usual pattern is left out, as old versions know no other."""
        slides = [bool(window) for window in model.windows]
        keys: dict[str, Any] = {_WINDOW: max(model.windows) or self.default}
        if any(slides) or self.default:
            usual = self._pattern(model, self.interval)
            keys |= {} if slides == usual else {PATTERN: slides}
        return keys

    @staticmethod
    def _pattern(model: ModelConfig, interval: int) -> list[bool]:
        layers = range(model.num_layers)
        return [not interval or layer % interval < interval - 1 for layer in layers]


@dataclasses.dataclass(frozen=True)
class UnusedWindow(Window):
    """The sliding window of all layers, which files have but llama.cpp ignores."""

    name: str = _WINDOW

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key for no window."""
        del model
        return {self.name: 0}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the window."""
        return f'config.model.layer_kinds with window={max(model.windows)}' * any(model.windows)


@dataclasses.dataclass(frozen=True)
class LocalRope(GlobalAndLocalRope):
    """The rotary settings of layers with a window: a base of their own, without scaling.

    Windows and the other settings must be read before.
    """

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knobs of layers with a window."""
        base = c.take_float(_LOCAL_BASE, 10000.0)
        changed = {
            'rope_base': 0.0 if base == model.rope.base else base,
            'rope_scaling': 0.0 if model.rope.scaling == 1 else 1.0,
        }
        kinds = kinds_of_layers(model)
        change_layers(
            model,
            [dataclasses.replace(kind, **changed) if kind.window else kind for kind in kinds],
        )

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        sliding = next((layer for layer, window in enumerate(model.windows) if window), None)
        if sliding is None:
            return {}
        return {_LOCAL_BASE: float(model.of_layer(sliding).rope.base)}


@dataclasses.dataclass(frozen=True)
class FixedQueryScalar(Part):
    """The number whose root divides the scores, which no key sets.

    It is the width of heads, or in a model of `wide_layers` layers `d_model / num_heads`.
    """

    wide_layers: int

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knob."""
        del c
        model.attention.query_pre_attn_scalar = self._value(model)

    def capabilities(self) -> dict[str, Any]:
        """Returns any value."""
        return {'attention.query_pre_attn_scalar': ANY}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the knob if it has another value."""
        value = model.attention.query_pre_attn_scalar
        if (value or model.head_dim) == self._value(model):
            return ''
        return f'config.model.attention.query_pre_attn_scalar={value}'

    def _value(self, model: ModelConfig) -> float:
        fills = model.num_layers == self.wide_layers
        return float(model.d_model // max(1, model.num_heads) if fills else _head_width(model))


@dataclasses.dataclass(frozen=True)
class Positive(Part):
    """A knob that llama.cpp divides by."""

    knob: str

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the knob if it is 0."""
        return '' if getattr(model, self.knob) else f'config.model.{self.knob}=0.0'


@dataclasses.dataclass(frozen=True)
class RotatesAllButEach(Part):
    """Layers that rotate queries and keys: all but each `interval`-th, which no key sets."""

    interval: int
    of_layers: ClassVar[tuple[str, ...]] = ('rope',)

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the layers."""
        del c
        change_layers(model, [LayerKind(rope=rotates) for rotates in self._layers(model)])

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the layers if they are others."""
        rotates = [kind.rope for kind in kinds_of_layers(model)]
        wrong = [i for i, same in enumerate(self._layers(model)) if rotates[i] != same]
        return f'config.model.layer_kinds with rope={rotates[wrong[0]]}' if wrong else ''

    def _layers(self, model: ModelConfig) -> list[bool]:
        return [(layer + 1) % self.interval != 0 for layer in range(model.num_layers)]


class Softmax(Part):
    """The probabilities from which a token's experts are chosen: a softmax over all, ungrouped."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Checks the keys."""
        del model
        c.require('expert_gating_func', _SOFTMAX, 0)
        c.require('expert_group_count', 0, 1)
        c.take('expert_group_used_count', None)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the function, whose default depends on the size of the model."""
        del model
        return {'expert_gating_func': _SOFTMAX}


@dataclasses.dataclass(frozen=True)
class NoBalance(BalanceLoss):
    """The loss of a router, which changes no logit and has no key."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets nothing."""

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns no key."""
        del model
        return {}


def _head_width(model: ModelConfig) -> int:
    """Returns the width of heads before `finalize_model` has set it."""
    return model.head_dim or model.d_model // max(1, model.num_heads)
