"""Parts of a config.json of transformers that say how layers differ."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from gpt_jax.errors import UserError
from gpt_jax.model.config import LayerKind, ModelConfig
from gpt_jax.weights.config_parts import Part
from gpt_jax.weights.source import ConfigReader

_SLIDING, _FULL = 'sliding_attention', 'full_attention'


def change_layers(model: ModelConfig, kinds: Sequence[LayerKind]) -> None:
    """Sets the kind of each layer, as the shortest pattern that repeats."""
    alike = all(kind == LayerKind() for kind in kinds)
    model.layer_kinds = () if alike else shortest_period(tuple(kinds))


def kinds_of_layers(model: ModelConfig) -> list[LayerKind]:
    """Returns the kind of each layer."""
    return [model.layer_kind(layer) for layer in range(model.num_layers)]


def differing_layers(model: ModelConfig, expressed: Collection[str]) -> str:
    """Returns a knob of `layer_kinds` that is set and not `expressed`; '' if there is none."""
    for kind in model.layer_kinds:
        for field in dataclasses.fields(kind):
            value = getattr(kind, field.name)
            if field.name not in expressed and value != field.default:
                return f'config.model.layer_kinds with {field.name}={value}'
    return ''


def shortest_period(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the shortest tuple that, repeated and cut, gives `values`."""
    for length in range(1, len(values) + 1):
        if all(value == values[i % length] for i, value in enumerate(values)):
            return values[:length]
    return values


def take_interval(c: ConfigReader, key: str, default: int) -> int:
    """Returns the value of a key, an integer of at least 1, or the default.

    Raises:
        UserError: its value is invalid.
    """
    if not (interval := c.take_int(key, default)):
        raise UserError(f'{c.name} has {key}=0, which must be at least 1')
    return interval


@dataclasses.dataclass(frozen=True)
class Window(Part):
    """The sliding window of all layers; null: none.

    If `switched`, layers have none without `use_sliding_window`.
    """

    of_layers: ClassVar[tuple[str, ...]] = ('window',)

    name: str = 'sliding_window'
    default: int = 0
    switched: bool = False

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the window pattern."""
        window = 0 if c.take_null(self.name) else c.take_int(self.name, self.default)
        if self.switched and not c.take_bool('use_sliding_window', False):
            window = 0
        kinds = kinds_of_layers(model)
        change_layers(model, [dataclasses.replace(kind, window=window) for kind in kinds])

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys."""
        window = model.windows[0]
        keys = {'use_sliding_window': bool(window)} if self.switched else {}
        return {self.name: window or None} | keys

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the windows if layers have several."""
        return _show_windows(model) if len(set(model.windows)) > 1 else ''


def every_second(c: ConfigReader, model: ModelConfig) -> list[bool]:
    """Returns the layers that slide: every second, from the first on (Gemma 2)."""
    del c
    return [layer % 2 == 0 for layer in range(model.num_layers)]


def from_layer_on(c: ConfigReader, model: ModelConfig) -> list[bool]:
    """Returns the layers that slide: those from `max_window_layers` on (Qwen)."""
    first = c.take_int('max_window_layers', 28)
    return [layer >= first for layer in range(model.num_layers)]


def not_rotated(c: ConfigReader, model: ModelConfig) -> list[bool]:
    """Returns the layers that slide: those without rotary positions (SmolLM3)."""
    del c
    return [not kind.rope for kind in kinds_of_layers(model)]


def not_every_nth(c: ConfigReader, model: ModelConfig) -> list[bool]:
    """Returns the layers that slide: all but each `sliding_window_pattern`-th (Gemma 3)."""
    interval = take_interval(c, 'sliding_window_pattern', 6)
    return [(layer + 1) % interval != 0 for layer in range(model.num_layers)]


@dataclasses.dataclass(frozen=True)
class LayerWindows(Part):
    """The layers with a sliding window (`layer_types`), and its size (`sliding_window`).

    `slides` returns the layers of a file without `layer_types`. If `switched`, none of them slides
    without `use_sliding_window`.
    """

    of_layers: ClassVar[tuple[str, ...]] = ('window',)

    default: int = 4096
    switched: bool = False
    slides: Callable[[ConfigReader, ModelConfig], list[bool]] = every_second

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the windows."""
        window = 0 if c.take_null('sliding_window') else c.take_int('sliding_window', self.default)
        slides = self.slides(c, model)
        if self.switched and not c.take_bool('use_sliding_window', False):
            slides, window = [False] * len(slides), 0
        types = c.take_list('layer_types', str, None)
        types = types or [_SLIDING if each and window else _FULL for each in slides]
        allowed = {_SLIDING, _FULL} if window else {_FULL}
        if len(types) != model.num_layers or not {*types} <= allowed:
            raise UserError(
                f'{c.name} has layer_types={str(types)[:80]}, which is not supported; supported: '
                f'{model.num_layers} of {", ".join(sorted(allowed))}'
            )
        windows = [window if kind == _SLIDING else 0 for kind in types]
        kinds = zip(kinds_of_layers(model), windows, strict=True)
        change_layers(model, [dataclasses.replace(kind, window=window) for kind, window in kinds])

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys."""
        windows = model.windows
        keys = {
            'sliding_window': max(windows) or self.default or None,
            'layer_types': [_SLIDING if window else _FULL for window in windows],
        }
        return keys | ({'use_sliding_window': any(windows)} if self.switched else {})

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the windows if they have several sizes."""
        return _show_windows(model) if len({*model.windows} - {0}) > 1 else ''


def _show_windows(model: ModelConfig) -> str:
    return (
        f'config.model.layer_kinds with windows of {", ".join(map(str, sorted({*model.windows})))}'
    )
