"""Differences of configs from the default and from each other."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_jax.config import RunConfig
from gpt_jax.config_tree import flatten, member_name, to_json

SEEDS = ('config.seed', 'config.sample.seed')
NONE = '–'


@dataclasses.dataclass(frozen=True)
class Setting:
    """A knob's value and its default, as text."""

    default: str
    value: str


def changed_settings(config: RunConfig) -> dict[str, Setting]:
    """Returns the knobs that differ from the default.

    Knobs of another member of a union, such as another optimizer, are compared with its defaults.
    """
    return _changes(config, RunConfig(), 'config')


def _changes(config: Any, default: Any, key: str) -> dict[str, Setting]:
    found = {}
    if type(config) is not type(default):
        found[key] = Setting(member_name(default), member_name(config))
        default = type(config)()
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        name = f'{key}.{field.name}'
        if dataclasses.is_dataclass(value) and dataclasses.is_dataclass(usual):
            found |= _changes(value, usual, name)
        elif value != usual:
            found[name] = Setting(_text(usual), _text(value))
    return found


def compare(all_settings: Sequence[Mapping[str, Setting]]) -> tuple[list[list[str]], ...]:
    """Returns tables of key, default and each value: those that differ, and those that do not."""
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    differ, same = [], []
    for key in keys:
        default = next(each[key].default for each in all_settings if key in each)
        values = [each[key].value if key in each else default for each in all_settings]
        row = [key.removeprefix('config.'), default]
        if len(set(values)) > 1:
            differ.append([*row, *values])
        else:
            same.append([*row, values[0]])
    return differ, same


def without_seeds(config: RunConfig) -> tuple[tuple[str, str], ...]:
    """Returns what is equal for runs that differ by their seed only."""
    values = flatten(to_json(config))
    return tuple((key, repr(value)) for key, value in sorted(values.items()) if key not in SEEDS)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ', '.join(map(_text, value)) or 'none'
    if dataclasses.is_dataclass(value):
        settings = _changes(value, type(value)(), '')
        return ' '.join(f'{key[1:]}={each.value}' for key, each in settings.items()) or 'default'
    if isinstance(value, bool):
        return str(value).lower()
    return f'{value:g}' if isinstance(value, float) else str(value) or "''"
