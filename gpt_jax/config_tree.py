"""Trees of config dataclasses in general: frozen copies, their JSON form, their differences."""

import dataclasses
import difflib
import enum
import functools
import types
import typing
from typing import Any

from gpt_jax.errors import UserError


@functools.cache
def _frozen_class(cls: type) -> type:
    """A subclass whose fields can be set once, by `__init__`, and which is hashable."""
    if cls.__hash__ is not None:
        return cls  # it is one

    def set_once(self, name: str, value: Any) -> None:
        if hasattr(self, name):
            raise dataclasses.FrozenInstanceError(f'cannot assign to {name!r} of a final config')
        object.__setattr__(self, name, value)

    def hash_fields(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in dataclasses.fields(self)))

    body = {'__slots__': (), '__setattr__': set_once, '__hash__': hash_fields}
    return type(cls.__name__, (cls,), body | {'__module__': cls.__module__})


def freeze(config: Any) -> Any:
    """A copy of a config tree that refuses changes; `dataclasses.replace` still works."""
    values = {
        field.name: freeze(value) if dataclasses.is_dataclass(value) else value
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
    }
    return _frozen_class(type(config))(**values)


def to_json(config: Any) -> dict[str, Any]:
    """A config tree as JSON values. The chosen member of a union is stored under `_type`."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tag = {'_type': type(value).__name__} if _members(field.type) else {}
            result[field.name] = tag | to_json(value)
        else:
            result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def from_json(values: dict[str, Any], cls: type, key: str = 'config') -> Any:
    """The inverse of `to_json`; keys that are absent keep their defaults.

    Raises:
        UserError: a key is unknown or a value has the wrong type, naming it.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name == '_type':
            continue
        if name not in fields:
            raise UserError(f'{key}.{name} is not a known key')
        arguments[name] = _from_json_value(value, fields[name].type, f'{key}.{name}')
    return cls(**arguments)


def _from_json_value(value: Any, kind: Any, key: str) -> Any:
    """One value of `from_json`."""
    members = _members(kind)
    if members and isinstance(value, dict):
        chosen = [member for member in members if member.__name__ == value.get('_type')]
        if not chosen:
            raise UserError(f'{key}._type={value.get("_type")!r} is not known')
        return from_json(value, chosen[0], key)
    if dataclasses.is_dataclass(kind):
        return from_json(value, kind, key)
    try:
        if typing.get_origin(kind) is tuple:
            value = (value,) if isinstance(value, str) else value
            return tuple(typing.get_args(kind)[0](item) for item in value)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f'{key}={value!r}: {error}') from error
    if not isinstance(value, kind):
        raise UserError(f'{key}={value!r} must be of type {kind.__name__}')
    return value


def _members(kind: Any) -> tuple[type, ...]:
    """The dataclasses of a union type; empty for any other type."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else ()


def flatten(values: dict[str, Any], prefix: str = 'config') -> dict[str, Any]:
    """Nested JSON values as `{'config.train.num_steps': …}`."""
    flat = {}
    for name, value in values.items():
        key = f'{prefix}.{name}'
        flat |= flatten(value, key) if isinstance(value, dict) else {key: value}
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each key whose value differs between two `to_json` results."""
    old, new = flatten(old), flatten(new)
    return [
        f'{key}: {old.get(key)!r} -> {new.get(key)!r}'
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def check_key(config: Any, path: str) -> None:
    """Refuses a dotted path that names no value of a config tree.

    Raises:
        UserError: naming the first unknown part and the nearest known one, or a branch's knobs.
    """
    root = config
    for depth, name in enumerate(parts := path.split('.')):
        where = '.'.join(['config', *parts[:depth]])
        if not dataclasses.is_dataclass(config):
            raise UserError(f'{where} is a value; it has no key {name!r}')
        known = [field.name for field in dataclasses.fields(config)]
        if name not in known:
            raise UserError(f'{where}.{name} is not a key; ' + suggest(name, known))
        config = getattr(config, name)
    if dataclasses.is_dataclass(config):
        knobs = [field.name for field in dataclasses.fields(config)]
        raise UserError(
            f'config.{path} holds knobs and takes no value: set config.{path}.{knobs[0]}, or '
            f'another of {", ".join(knobs)}' + _choice_of(root, parts)
        )


def _choice_of(root: Any, parts: list[str]) -> str:
    """How to choose the class of a branch that has several; '' for any other branch."""
    *above, name = parts
    for part in above:
        root = getattr(root, part)
    kinds = {field.name: field.type for field in dataclasses.fields(root)}
    members = [member.__name__ for member in _members(kinds[name])]
    if not members:
        return ''
    return f'; which of {", ".join(members)} it is, the config file says ({name}={members[0]}())'


def suggest(name: str, known: list[str]) -> str:
    """`did you mean X?`, or what there is when nothing is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f'did you mean {near[0]}?' if near else f'there are {", ".join(known)}'
