"""The text of `--help`: the flags of modes, and every knob with its type, default and comment."""

import dataclasses
import enum
import inspect
import re
import textwrap
import typing
from typing import Any

from absl import flags as absl_flags

WIDTH = 79
_COLUMN = 34  # where comments begin; a longer knob has its comment on the next line


def describe_mode(name: str, text: str) -> str:
    """Returns a mode's name and what it does."""
    return textwrap.fill(f'  {name:<15}{text}', WIDTH, subsequent_indent=' ' * 17)


def describe_flags(flags: absl_flags.FlagValues) -> str:
    """Returns a line or more for each flag: name, default, help."""
    lines = []
    for name in sorted(flags):
        flag = flags[name]
        default = '' if flag.default in (None, '') else f'={_shown(flag.default)}'
        lines += _entry(f'    --{name}{default}', flag.help.splitlines()[0].rstrip(';'))
    return '\n'.join(lines)


def describe_config(config: Any, key: str = 'config') -> str:
    """Returns the knobs of a config tree with their values, a paragraph for each branch."""
    values, branches = [], []
    comments = _comments(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            branches.append(describe_config(value, f'{key}.{field.name}'))
            continue
        comment = comments.get(field.name, '')
        comment = f'{_kind(field.type)}{": " if comment else ""}{comment}'
        values += _entry(f'  .{field.name}={_shown(value)}', comment)
    text = (type(config).__doc__ or '').partition('\n')[0]
    if text.startswith(f'{type(config).__name__}('):  # made by dataclasses, not by an author
        text = ''
    title = textwrap.fill(f'--{key}  {text}', WIDTH)
    return '\n\n'.join(['\n'.join([title, *values]), *branches])


def _entry(name: str, text: str) -> list[str]:
    """Returns `name` and `text` in two columns."""
    indent = ' ' * _COLUMN
    lines = textwrap.wrap(text, WIDTH - _COLUMN, break_on_hyphens=False)
    if not lines:
        return [name]
    if len(name) > _COLUMN - 2:
        return [name, *(indent + line for line in lines)]
    return [name.ljust(_COLUMN) + lines[0], *(indent + line for line in lines[1:])]


def _shown(value: Any) -> str:
    """Returns a value as it is written in a flag."""
    if isinstance(value, list | tuple):
        return ','.join(map(str, value)) or '()'
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if str(value) and str(value) == str(value).strip() else repr(value)


def _kind(kind: Any) -> str:
    """Returns a type in words: `int`, `tuple of str`, or the choices of an enumeration."""
    if typing.get_origin(kind) is tuple:
        return f'tuple of {_kind(typing.get_args(kind)[0])}'
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return '|'.join(member.value for member in kind)
    return getattr(kind, '__name__', str(kind))


def _comments(cls: type) -> dict[str, str]:
    """Returns the comment beside each field in the source of a dataclass; {} without source."""
    try:
        source = inspect.getsource(inspect.unwrap(cls))
    except (OSError, TypeError):
        return {}
    found = re.findall(r'^    (\w+): .*?  # (.*(?:\n {6,}# .*)*)$', source, re.M)
    return {name: re.sub(r'\n +# ', ' ', comment) for name, comment in found}
