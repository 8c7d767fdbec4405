"""Config keys that have moved: one table, and the places that still accept the old keys.

An old key works as a flag, in a stored config.json, as an attribute of its dataclass and as a
keyword of its constructor. New files have the new keys only.
"""

import copy
import dataclasses
import enum
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

MOVED = {
    'model.rope_base': 'model.rope.base',
    'model.rope_scaling': 'model.rope.scaling',
    'model.rope_original_seq_len': 'model.rope.original_seq_len',
    'model.rope_low_freq_factor': 'model.rope.low_freq_factor',
    'model.rope_high_freq_factor': 'model.rope.high_freq_factor',
    'model.window_pattern': 'model.layer_kinds',
    'model.qk_norm': 'model.attention.qk_norm',
    'model.qkv_bias': 'model.attention.qkv_bias',
    'model.dropout': 'model.dropouts.residual',
    'model.attention_dropout': 'model.dropouts.attention',
    'model.init_std': 'model.init.std',
    'model.scale_residual_init': 'model.init.scale_residual',
    'model.param_dtype': 'model.precision.params',
    'model.compute_dtype': 'model.precision.compute',
    'model.matmul_precision': 'model.precision.matmul',
    'model.attention_kernel': 'model.execution.attention_kernel',
    'model.norm_kernel': 'model.execution.norm_kernel',
    'model.scan_layers': 'model.execution.scan_layers',
    'model.remat': 'model.execution.remat',
    'optimizer.clip_norm': 'train.clip_norm',
}
# Values of knobs that were booleans.
OLD_BOOLEANS = {'model.attention.qk_norm': {True: 'head', False: 'none'}}
FLAG = re.compile(r'(--?(?:no)?config\.)([^=]*)(.*)', re.DOTALL)


class KeepsMovedValues:
    """Base of a dataclass with a key that moved to another branch.

    A value assigned to the old key is kept here until the tree of configs is read.
    """

    __slots__ = ('moved_values',)


def rename(key: str) -> str:
    """Returns the new name of a key below `config`, or the key itself if it has not moved."""
    return MOVED.get(key, key)


def rename_flag(argument: str) -> str:
    """Returns `--config.OLD=value` as `--config.NEW=value`, any other argument unchanged."""
    match = FLAG.fullmatch(argument)
    if match is None:
        return argument
    before, key, after = match.groups()
    key = rename(key)
    if values := OLD_BOOLEANS.get(key):
        texts = {'': True, '=true': True, '=1': True, '=false': False, '=0': False}
        if before.startswith(('-no', '--no')):
            before, after = before.replace('no', '', 1), f'={values[False]}'
        elif (old := texts.get(after.lower())) is not None:
            after = f'={values[old]}'
    return f'{before}{key}{after}'


def rename_json(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Returns the JSON values of a dataclass with new keys.

    The class has the name of its branch as `config_branch`, '' for the whole tree; others have no
    old keys.
    """
    branch = getattr(cls, 'config_branch', None)
    if branch is None:
        return dict(values)
    prefix = f'{branch}.' if branch else ''
    values = copy.deepcopy(dict(values))
    for old, new in MOVED.items():
        if old.startswith(prefix) and new.startswith(prefix):
            *above, name = old.removeprefix(prefix).split('.')
            holder = functools.reduce(lambda inner, part: _as_dict(inner.get(part)), above, values)
            if name in holder:
                *above, new_name = new.removeprefix(prefix).split('.')
                target = functools.reduce(
                    lambda inner, part: inner.setdefault(part, {}), above, values
                )
                if isinstance(target, dict):  # else `from_json` rejects it
                    target[new_name] = holder.pop(name)
    return values


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def accepts_moved_keys(branch: str) -> Callable[[type], type]:
    """Decorates the dataclass of a branch, so that it has the old keys as attributes and keywords.

    The class of a key that moved to another branch is a subclass of `KeepsMovedValues`.
    """

    def decorate(cls: type) -> type:
        names = {
            old.removeprefix(f'{branch}.'): new.removeprefix(f'{branch}.')
            for old, new in MOVED.items()
            if old.startswith(f'{branch}.')
        }
        cls.config_branch = branch
        for old, new in names.items():
            outside = MOVED[f'{branch}.{old}'] == new
            setattr(cls, old, _outside(old, new) if outside else _inside(new))
        cls.__init__ = _accept_keywords(cls, names)
        return cls

    return decorate


def old_names(cls: type) -> list[str]:
    """Returns the old keys that a decorated dataclass accepts."""
    return list(getattr(cls.__init__, 'moved', ()))


def _inside(path: str) -> property:
    """Returns the property of a key that moved to `name` or `group.name` of the same dataclass."""
    *group, name = path.split('.')

    def holder(self: Any) -> Any:
        return functools.reduce(getattr, group, self)

    return property(
        lambda self: getattr(holder(self), name),
        lambda self, value: setattr(holder(self), name, value),
        doc=f'The old name of `{path}`.',
    )


def _outside(old: str, path: str) -> property:
    """Returns the property of a key that moved to another branch of the tree."""

    def get(self: KeepsMovedValues) -> Any:
        values = getattr(self, 'moved_values', {})
        if old not in values:
            raise AttributeError(f'{old} has moved: read config.{path}')
        return values[old]

    def put(self: KeepsMovedValues, value: Any) -> None:
        self.moved_values = getattr(self, 'moved_values', {}) | {old: value}

    return property(get, put, doc=f'The old name of `config.{path}`.')


def _replace(config: Any, name: str, value: Any) -> Any:
    """Returns a copy of a dataclass with another value, which may be an old one of an enum."""
    [kind] = (field.type for field in dataclasses.fields(config) if field.name == name)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        value = kind(value)
    return dataclasses.replace(config, **{name: value})


def _accept_keywords(cls: type, names: Mapping[str, str]) -> Callable[..., None]:
    """Returns the constructor of `cls` that also takes old keys."""
    init = cls.__init__
    defaults = {field.name: field.default_factory for field in dataclasses.fields(cls)}

    @functools.wraps(init)
    def construct(self: Any, **values: Any) -> None:
        moved = {old: values.pop(old) for old in names if old in values}
        outside = {}
        for old, value in moved.items():
            group, _, name = names[old].partition('.')
            if not name and group in defaults:
                values[group] = value
            elif group in defaults:  # a copy: the given group may be frozen, or belong to others
                given = values.get(group)
                given = {'_type': str(given)} if isinstance(given, str) else given
                given = defaults[group]() if given is None else given
                if isinstance(given, dict):
                    values[group] = given | {name: value}
                else:
                    values[group] = _replace(given, name, value)
            else:
                outside[old] = value
        init(self, **values)
        for old, value in outside.items():
            setattr(self, old, value)

    construct.moved = tuple(names)
    return construct
