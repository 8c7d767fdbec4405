"""Trees of config dataclasses: domains of values, frozen copies, JSON form, differences."""

import dataclasses
import difflib
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from gpt_jax import moved_keys
from gpt_jax.errors import UserError

INT32_MAX = 2**31 - 1
# The normal numbers of float32, in which config values are used: others become inf or 0 there.
FLOAT32_MIN, FLOAT32_MAX = 1.2e-38, 3.4e38


@dataclasses.dataclass(frozen=True, slots=True)
class Domain:
    """The values that a knob allows, and their description for errors."""

    kind: type  # int, float or str
    rule: str  # completes '<key>=<value> …'
    holds: Callable[[Any], bool]  # False for NaN

    def check(self, key: str, value: Any) -> None:
        """Raises UserError unless `value`, the value of `key`, is in the domain."""
        kinds = (int, float) if self.kind is float else self.kind
        has_kind = isinstance(value, kinds) and not isinstance(value, bool)
        if not has_kind or not self.holds(value):
            raise UserError(f'{key}={_show(value)} {self.rule}')


def knob(default: Any, domain: Domain) -> Any:
    """Declares a field of a config dataclass whose values `check_domains` checks."""
    return dataclasses.field(default=default, metadata={'domain': domain})


def whole(default: Any, *, low: int = 0, high: int = INT32_MAX) -> Any:
    """Declares a knob that takes whole numbers from `low` to `high`."""
    rule = f'must be a whole number from {low} to {high}'
    return knob(default, Domain(int, rule, lambda value: low <= value <= high))


def count(default: int) -> Any:
    """Declares a knob that takes whole numbers from 1 on."""
    return whole(default, low=1)


def seed32(default: int) -> Any:
    """Declares a seed. jax keeps 32 bits of it, so seeds in this range never coincide."""
    return whole(default, high=2**32 - 1)


def real(default: float, low: float, high: float, *, or_zero: bool = False) -> Any:
    """Declares a knob that takes numbers from `low` to `high`, and perhaps 0."""
    rule = f'must be a finite number from {low:g} to {high:g}' + (', or 0' if or_zero else '')
    holds = lambda value: low <= value <= high or (or_zero and value == 0)  # noqa: E731
    return knob(default, Domain(float, rule, holds))


def positive(default: float) -> Any:
    """Declares a knob that takes positive numbers."""
    holds = lambda value: FLOAT32_MIN <= value <= FLOAT32_MAX  # noqa: E731
    return knob(default, Domain(float, 'must be a positive finite number', holds))


def finite(default: float) -> Any:
    """Declares a knob that takes 0 and positive numbers."""
    holds = lambda value: value == 0 or FLOAT32_MIN <= value <= FLOAT32_MAX  # noqa: E731
    return knob(default, Domain(float, 'must not be negative, and must be finite', holds))


def fraction(default: float) -> Any:
    """Declares a knob that takes numbers in [0, 1)."""
    return knob(default, Domain(float, 'must be in [0, 1)', lambda value: 0 <= value < 1))


def part(default: float) -> Any:
    """Declares a knob that takes numbers in [0, 1]."""
    return knob(default, Domain(float, 'must be in [0, 1]', lambda value: 0 <= value <= 1))


def file_path(default: Any = '') -> Any:
    """Declares a knob that takes the name of a file or folder, or several."""
    rule = 'has a NUL byte, which no file name has; remove it'
    return knob(default, Domain(str, rule, lambda value: '\0' not in value))


def check_domains(config: Any, key: str = 'config') -> None:
    """Checks every value of a config tree against the domain that its field declares.

    Raises:
        UserError: a value is outside its domain; names the key and the domain.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f'{key}.{field.name}'
        if dataclasses.is_dataclass(value):
            check_domains(value, name)
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for i, item in enumerate(value):
                check_domains(item, f'{name}[{i}]')
        elif domain := field.metadata.get('domain'):
            for item in value if isinstance(value, tuple) else (value,):
                domain.check(name, item)


def _show(value: Any) -> str:
    """Returns `repr(value)`: of enums that of their text, and short text for long integers."""
    if isinstance(value, enum.Enum):
        return repr(value.value)
    if isinstance(value, int) and value.bit_length() > 128:
        return f'{"-" if value < 0 else ""}2**{value.bit_length() - 1}…'
    return repr(value)


@functools.cache
def _frozen_class(cls: type) -> type:
    """Returns a hashable subclass whose fields can only be set once, by `__init__`."""
    if cls.__hash__ is not None:
        return cls  # frozen already

    def set_once(self, name: str, value: Any) -> None:
        if hasattr(self, name):
            raise dataclasses.FrozenInstanceError(f'cannot assign to {name!r} of a final config')
        object.__setattr__(self, name, value)

    def hash_fields(self) -> int:
        if not hasattr(self, '_hash'):  # jax asks for it in each call of a program
            values = tuple(getattr(self, field.name) for field in dataclasses.fields(self))
            object.__setattr__(self, '_hash', hash(values))
        return self._hash

    def equals(self, other: Any) -> bool:
        """Compares with a config of the class, frozen or not."""
        return isinstance(other, cls) and all(
            getattr(self, field.name) == getattr(other, field.name)
            for field in dataclasses.fields(self)
        )

    body = {
        '__slots__': ('_hash',),
        '__setattr__': set_once,
        '__hash__': hash_fields,
        '__eq__': equals,
    }
    return type(cls.__name__, (cls,), body | {'__module__': cls.__module__})


def freeze(config: Any) -> Any:
    """Returns an immutable copy of a config tree; `dataclasses.replace` still works."""
    if isinstance(config, tuple):
        return tuple(map(freeze, config))
    if not dataclasses.is_dataclass(config):
        return config
    values = {
        field.name: freeze(getattr(config, field.name)) for field in dataclasses.fields(config)
    }
    return _frozen_class(type(config))(**values)


def to_json(config: Any) -> dict[str, Any]:
    """Returns a config tree as JSON values. The chosen member of a union is stored as `_type`."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tag = {'_type': type(value).__name__} if _members(field.type) else {}
            result[field.name] = tag | to_json(value)
        elif isinstance(value, tuple):
            items = [to_json(item) if dataclasses.is_dataclass(item) else item for item in value]
            result[field.name] = items
        else:
            result[field.name] = value
    return result | getattr(config, 'moved_values', {})


def from_json(values: dict[str, Any], cls: type, key: str = 'config') -> Any:
    """Builds a config tree from the values of `to_json`; absent keys keep their defaults.

    Keys that have moved are read at their old place too.

    Raises:
        UserError: a key is unknown or a value has the wrong type; names the key.
    """
    if not isinstance(values, dict):
        raise UserError(f'{key}={_show(values)} must hold the keys of {cls.__name__}')
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {
        name: {'_type': value} if name in fields and _is_choice(fields[name].type, value) else value
        for name, value in values.items()
    }
    arguments = {}
    for name, value in moved_keys.rename_json(values, cls).items():
        if name == '_type':
            continue
        if name not in fields:
            raise UserError(f'{key}.{name} is not a known key')
        arguments[name] = from_json_value(value, fields[name].type, f'{key}.{name}')
    return cls(**arguments)


def from_json_value(value: Any, kind: Any, key: str) -> Any:
    """Converts the value of one field of a config tree, whose type is `kind`, for `from_json`.

    Raises:
        UserError: the value has the wrong type; names the key.
    """
    if value is None and types.NoneType in typing.get_args(kind):
        return None
    if _members(kind):
        if _is_choice(kind, value):
            value = {'_type': value}
        if not isinstance(value, dict):
            raise UserError(f'{key}={_show(value)} must be one of {", ".join(choices(kind))}')
        member, given = choose_member(value.get('_type'), kind, key)
        return from_json(given | value, member, key)
    if isinstance(kind, types.UnionType):  # a value, or None
        kind = next(each for each in typing.get_args(kind) if each is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        return _from_json_dataclass(value, kind, key)
    try:
        if typing.get_origin(kind) is tuple:
            item_kind = typing.get_args(kind)[0]
            value = (value,) if isinstance(value, str) else value
            if dataclasses.is_dataclass(item_kind):
                items = enumerate(value)
                return tuple(
                    _from_json_dataclass(item, item_kind, f'{key}[{i}]') for i, item in items
                )
            return tuple(_from_json_item(item, item_kind) for item in value)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            try:
                return kind(value)
            except ValueError:
                names = ', '.join(str(each.value) for each in kind)
                raise UserError(f'{key}={value!r} is not one of {names}') from None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f'{key}={_show(value)}: {error}') from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f'{key}={_show(value)} must be of type {kind.__name__}')
    return value


def _from_json_dataclass(value: Any, kind: type, key: str) -> Any:
    """Converts a dict, a dataclass, or the value of the class's `shorthand` knob."""
    if isinstance(value, kind):
        return value
    shorthand = getattr(kind, 'shorthand', '')
    if shorthand and not isinstance(value, dict):
        of_knob = _field(kind, shorthand).type
        if isinstance(value, str):
            value = _from_json_item(value, of_knob)
        value = {shorthand: value}
    return from_json(value, kind, key)


def _from_json_item(item: Any, kind: type) -> Any:
    """Converts one item of a tuple; a flag gives strings for numbers, and the other way round.

    Raises:
        ValueError: the item has another type.
    """
    if isinstance(item, kind) and not isinstance(item, bool):
        return item
    if kind is str and type(item) is int:
        return str(item)
    if not isinstance(item, str):
        raise ValueError(f'{item!r} is not of type {kind.__name__}')
    return kind(item)


def _members(kind: Any) -> tuple[type, ...]:
    """Returns the dataclasses of a union type; empty for any other type."""
    members = typing.get_args(kind) if isinstance(kind, types.UnionType) else ()
    return tuple(filter(dataclasses.is_dataclass, members))


def _is_choice(kind: Any, value: Any) -> bool:
    """Returns whether `value` names a member of the union `kind`."""
    return bool(_members(kind)) and isinstance(value, str)


def _choice(member: type) -> str:
    """Returns 'grouped_query' for GroupedQuery, 'adamw' for AdamW; `chosen_by` if it has one."""
    snake = re.sub('(?<=[a-z])(?=[A-Z][a-z])', '_', member.__name__).lower()
    return getattr(member, 'chosen_by', snake)


def member_name(value: Any) -> str:
    """Returns the text that chooses this member of a union: 'grouped_query'."""
    return _choice(type(value))


def choices(kind: Any) -> list[str]:
    """Returns the texts that choose a member of a union, as in --config.model.mlp=swiglu.

    They are the names of the members, or their class attribute `chosen_by`. A member with a class
    attribute `shorthand`, the name of one of its knobs, is also chosen by a value of that knob.
    """
    texts = []
    for member in _members(kind):
        texts.append(_choice(member))
        if shorthand := getattr(member, 'shorthand', ''):
            texts += [str(each.value) for each in _field(member, shorthand).type]
    return texts


def choose_member(name: str | None, kind: Any, key: str) -> tuple[type, dict[str, Any]]:
    """Returns the member of a union that `name` chooses, and the values that it gives to knobs.

    None chooses the first member.

    Raises:
        UserError: no member has this name.
    """
    members = _members(kind)
    if name is None:
        return members[0], {}
    for member in members:
        if name in (member.__name__, _choice(member)):
            return member, {}
        shorthand = getattr(member, 'shorthand', '')
        if shorthand and name in [*_field(member, shorthand).type]:
            return member, {shorthand: str(name)}
    raise UserError(f'{key}={_show(name)} is not one of {", ".join(choices(kind))}')


def _field(cls: type, name: str) -> dataclasses.Field:
    return next(field for field in dataclasses.fields(cls) if field.name == name)


def flatten(values: dict[str, Any], prefix: str = 'config') -> dict[str, Any]:
    """Flattens nested JSON values to `{'config.train.num_steps': …}`."""
    flat = {}
    for name, value in values.items():
        key = f'{prefix}.{name}'
        flat |= flatten(value, key) if isinstance(value, dict) else {key: value}
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns one line for each key whose value differs between two `to_json` results."""
    old, new = flatten(old), flatten(new)
    return [
        f'{key}: {_show(old.get(key))} -> {_show(new.get(key))}'
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def get_value(config: Any, path: str, *default: Any) -> Any:
    """Returns the value of a dotted path, such as 'train.num_steps', or the default without it."""
    for name in path.split('.'):
        config = getattr(config, name, *default)
    return config


def set_value(config: Any, path: str, value: Any) -> None:
    """Sets the value of a dotted path."""
    *above, name = path.split('.')
    setattr(functools.reduce(getattr, above, config), name, value)


def check_key(config: Any, path: str) -> None:
    """Rejects a dotted path that does not name a value of a config tree.

    Raises:
        UserError: the path is unknown or a branch; names the nearest key, or the branch's knobs.
    """
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
            f'another of {", ".join(knobs)}'
        )


def has_choice(config: Any, path: str) -> bool:
    """Returns whether the value at a dotted path is a member of a union."""
    return bool(_members(_kind_of(config, path)))


def choose(config: Any, path: str, name: str) -> None:
    """Sets the union at a dotted path to the member that `name` chooses.

    The knobs of the member get their defaults, unless it was chosen before.

    Raises:
        UserError: the union has no such member.
    """
    member, given = choose_member(name, _kind_of(config, path), f'config.{path}')
    old = get_value(config, path)
    kept = to_json(old) if type(old) is member else {}
    set_value(config, path, from_json(kept | given, member, f'config.{path}'))


def _kind_of(config: Any, path: str) -> Any:
    """Returns the declared type of the field at a dotted path; None if there is none."""
    *above, name = path.split('.')
    for part in above:
        config = getattr(config, part, None)
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    return next((field.type for field in fields if field.name == name), None)


def check_names(given: Iterable[str], config: type, where: str) -> None:
    """Rejects keywords that are not fields of `config`.

    Raises:
        UserError: a keyword is unknown; names it and the nearest field.
    """
    known = [field.name for field in dataclasses.fields(config)]
    for name in given:
        if name not in [*known, *moved_keys.old_names(config)]:
            raise UserError(f'{where} has no argument {name!r}; {suggest(name, known)}')


def suggest(name: str, known: list[str]) -> str:
    """Returns `did you mean X?`, or the list of known names if none is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f'did you mean {near[0]}?' if near else f'there are {", ".join(known)}'
