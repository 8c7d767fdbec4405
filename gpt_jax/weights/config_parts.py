"""Parts of a config.json of transformers, each read and written by one description."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from gpt_jax.config_tree import get_value, set_value
from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig, RopeConfig
from gpt_jax.model.position import yarn_growth
from gpt_jax.weights.layout import ANY
from gpt_jax.weights.source import ConfigReader

REQUIRED = object()  # a default: the key must be in the file


class Part:
    """Some keys of a config.json, and the knobs that they set; by default there are none.

    `of_layers` are the knobs of `config.model.layer_kinds` among them.
    """

    of_layers: ClassVar[tuple[str, ...]] = ()

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knobs of `model` from the keys.

        Raises:
            UserError: a key is absent, or has no counterpart; the message names it.
        """

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys for the knobs of `model`, which are among `capabilities`."""
        del model
        return {}

    def capabilities(self) -> dict[str, Any]:
        """Returns the values that the keys express, by knob."""
        return {}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns a setting that the keys cannot express despite `capabilities`; '' if none."""
        del model
        return ''


@dataclasses.dataclass(frozen=True)
class Key(Part):
    """A key and the knobs that have its value.

    `kind` is int, float or bool, or maps the file's values to ours. With `null`, a null in the file
    is 0 in the knob. `alias` is another name of the key, which some files have instead.
    """

    name: str
    knob: str | tuple[str, ...]
    kind: Any
    default: Any = REQUIRED
    null: bool = False
    alias: str = ''

    @property
    def knobs(self) -> tuple[str, ...]:
        """The knobs as a tuple."""
        return (self.knob,) if isinstance(self.knob, str) else self.knob

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knobs."""
        default = () if self.default is REQUIRED else (self.default,)
        default = (c.take(self.alias, *default),) if self.alias else default
        if self.null and c.take_null(self.name):
            value = self.kind(0)
        elif isinstance(self.kind, Mapping):
            value = self.kind[c.require(self.name, *self.kind)]
        else:
            takes = {int: c.take_int, float: c.take_float, bool: c.take_bool}
            value = takes[self.kind](self.name, *default)
        for knob in self.knobs:
            set_value(model, knob, value)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        value = get_value(model, self.knobs[0])
        if self.null and not value:
            return {self.name: None}
        if isinstance(self.kind, Mapping):
            value = next(theirs for theirs, ours in self.kind.items() if ours == value)
        return {self.name: value}

    def capabilities(self) -> dict[str, Any]:
        """Returns the values of a mapping, or any."""
        allowed = tuple(self.kind.values()) if isinstance(self.kind, Mapping) else ANY
        return dict.fromkeys(self.knobs, allowed)

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the first two knobs if they differ, as one key sets them all."""
        first, *rest = self.knobs
        for knob in rest:
            if get_value(model, knob) != get_value(model, first):
                values = (f'config.model.{k}={get_value(model, k)}' for k in (first, knob))
                return ' with '.join(values)
        return ''


@dataclasses.dataclass(frozen=True)
class Require(Part):
    """A key that must have the given value, which is transformers' default; exports omit it."""

    name: str
    value: Any

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Checks the value."""
        c.require(self.name, self.value)


@dataclasses.dataclass(frozen=True)
class Same(Part):
    """A knob without a key of its own, which must equal another: `num_kv_heads` without groups."""

    knob: str
    other: str

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the knob if it differs from the other."""
        value = get_value(model, self.knob)
        same = value == get_value(model, self.other)
        return '' if same else f'config.model.{self.knob}={value}'


@dataclasses.dataclass(frozen=True)
class DerivedHeadDim(Part):
    """The width of heads of a family that has no key for it: heads fill d_model."""

    def obstacle(self, model: ModelConfig) -> str:
        """Returns head_dim if heads do not fill d_model."""
        fills = model.num_heads * model.head_dim == model.d_model
        return '' if fills else f'config.model.head_dim={model.head_dim}'


@dataclasses.dataclass(frozen=True)
class Rope(Part):
    """The rotary settings: `rope_parameters`, or keys of their own before transformers 5.

    `fraction` is the name of the key of the rotated part; '' if the family rotates whole heads.
    `mscale` is the knob of YaRN's `mscale_all_dim` if the family scales its scores by it.
    """

    kinds: tuple[str, ...] = ('default', 'linear', 'llama3', 'yarn')
    base: str = 'rope_theta'
    default_base: float = 10000.0
    fraction: str = ''
    default_fraction: float = 1.0
    mscale: str = ''

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knobs of `config.model.rope`."""
        base, fraction = c.take_float(self.base, self.default_base), 1.0
        if self.fraction:
            fraction = c.take_float(self.fraction, self.default_fraction)
        scaling = c.take('rope_scaling', None)
        values = c.take('rope_parameters', None) or scaling or {}
        self.read_values(c, values, model, base=base, fraction=fraction)

    def read_values(
        self,
        c: ConfigReader,
        values: Any,
        model: ModelConfig,
        *,
        base: float,
        fraction: float = 1.0,
    ) -> None:
        """Sets the knobs of `config.model.rope` from the keys within `rope_parameters`."""
        rope, r = model.rope, ConfigReader(values, name=f'{c.name}, rope')
        rope.base = r.take_float('rope_theta', base)
        if self.fraction:
            rope.fraction = r.take_float('partial_rotary_factor', fraction)
        else:
            r.require('partial_rotary_factor', 1.0)
        kind = r.take('type', 'default')
        kind = r.take('rope_type', kind)
        if kind not in self.kinds:
            supported = ', '.join(map(repr, self.kinds))
            raise UserError(
                f'{c.name} has rope_type={kind!r}, which is not supported; supported: {supported}'
            )
        if kind in ('linear', 'llama3'):
            rope.scaling = r.take_float('factor')
        if kind == 'llama3':
            rope.original_seq_len = r.take_int('original_max_position_embeddings')
            rope.low_freq_factor = r.take_float('low_freq_factor')
            rope.high_freq_factor = r.take_float('high_freq_factor')
        if kind == 'yarn':
            scale_all = _read_yarn(r, model)
            if self.mscale:
                set_value(model, self.mscale, scale_all)
        r.finish(())

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns `rope_parameters` of transformers 5, and the keys of older versions."""
        rope = model.rope
        values: dict[str, Any] = {'rope_type': 'default', 'rope_theta': rope.base}
        original = {
            'factor': rope.scaling,
            'original_max_position_embeddings': rope.original_seq_len,
        }
        if rope.yarn:
            values |= original | {
                'rope_type': 'yarn',
                'beta_fast': rope.beta_fast,
                'beta_slow': rope.beta_slow,
                'attention_factor': rope.attention_factor,
            }
            values |= {} if rope.yarn_truncate else {'truncate': False}
            if self.mscale and (scale_all := get_value(model, self.mscale)):
                values |= _mscales(rope, scale_all)
        elif rope.original_seq_len:
            values |= original | {
                'rope_type': 'llama3',
                'low_freq_factor': rope.low_freq_factor,
                'high_freq_factor': rope.high_freq_factor,
            }
        elif rope.scaling != 1:
            values |= {'rope_type': 'linear', 'factor': rope.scaling}
        scaling = {key: value for key, value in values.items() if key != 'rope_theta'}
        old = {
            self.base: rope.base,
            'rope_scaling': scaling if values['rope_type'] != 'default' else None,
        }
        if self.fraction:
            old[self.fraction] = rope.fraction
            values['partial_rotary_factor'] = rope.fraction
        return {'rope_parameters': values, **old}

    def capabilities(self) -> dict[str, Any]:
        """Returns the values of `config.model.rope`."""
        names = []
        names += ['fraction'] if self.fraction else []
        if 'yarn' in self.kinds:
            names += ['yarn', 'beta_fast', 'beta_slow', 'yarn_truncate', 'attention_factor']
        only: dict[str, Any] = {} if 'linear' in self.kinds else {'rope.scaling': (1.0,)}
        if 'llama3' not in self.kinds:
            only['rope.original_seq_len'] = (0,)
        only |= {self.mscale: ANY} if self.mscale else {}
        return only | {f'rope.{name}': ANY for name in names}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the attention factor if it is not YaRN's."""
        rope = model.rope
        if rope.attention_factor != 1 and not rope.yarn:
            return f'config.model.rope.attention_factor={rope.attention_factor}'
        return ''


def _read_yarn(r: ConfigReader, model: ModelConfig) -> float:
    """Sets the knobs of YaRN's scaling, which other keys may imply; returns `mscale_all_dim`."""
    rope = model.rope
    rope.yarn = True
    rope.original_seq_len = r.take_int('original_max_position_embeddings', model.max_seq_len)
    rope.scaling = r.take_float('factor', model.max_seq_len / max(1, rope.original_seq_len))
    rope.beta_fast = r.take_float('beta_fast', 0.0) or 32.0
    rope.beta_slow = r.take_float('beta_slow', 0.0) or 1.0
    rope.yarn_truncate = r.take_bool('truncate', True)
    scale, scale_all = r.take_float('mscale', 0.0), r.take_float('mscale_all_dim', 0.0)
    growth = yarn_growth(rope)
    derived = 1 + growth
    if scale and scale_all:
        derived = (1 + scale * growth) / (1 + scale_all * growth)
    rope.attention_factor = r.take_float('attention_factor', derived)
    return scale_all


def _mscales(rope: RopeConfig, scale_all: float) -> dict[str, float]:
    """Returns the keys of the scores' scale.

    Programs that do not know `attention_factor` derive it from both, as `_read_yarn` does.
    """
    growth = yarn_growth(rope)
    scale = (rope.attention_factor * (1 + scale_all * growth) - 1) / growth if growth else 1.0
    return {'mscale_all_dim': scale_all, 'mscale': round(scale, 6)}
