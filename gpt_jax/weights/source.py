"""The result of a reader: pre-trained weights before conversion to this model's parameters."""

import dataclasses
import math
import numbers
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.parameter import ParameterGroups
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.weights.credits import NO_CREDITS, Credits
from gpt_jax.weights.layout import TABLES, TensorLayout

LARGEST = 2**31 - 1  # integer in a config


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, read on demand."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # a view of the file where the format allows it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Weights, architecture and tokenizer of a file or folder."""

    name: str  # the path, for error messages
    model: ModelConfig  # the architecture, finalized
    layout: Sequence[TensorLayout]
    tensors: Mapping[str, StoredTensor]
    without_weights: str = ''  # pattern of tensors that are no parameters, such as masks
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None  # Jinja template of conversations
    credits: Credits = NO_CREDITS
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # unchecked

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Checks that each tensor is used exactly once and has the expected shape.

        Args:
          shapes: the shapes of our parameters by path, without the axes of layers and experts that
            the format stores as tensors of their own.

        Raises:
            UserError: a tensor is missing, unexpected or has another shape; the message names it.
        """
        sizes = max((entry.sizes(self.model.num_layers) for entry in self.layout), key=math.prod)
        if math.prod(sizes) > len(self.tensors):  # before listing that many names
            per_layer = f' of {sizes[-1]} experts' if len(sizes) > 1 else ''
            raise UserError(
                f'{self.name} has {len(self.tensors)} tensors, its config {self.model.num_layers} '
                f'layers{per_layer}; it is damaged or of another architecture'
            )
        groups = parameter_groups(self.model)
        expected = {
            name: self._stored_shape(entry, shapes, groups)
            for entry in self.layout
            for name in entry.names(self.model.num_layers).values()
        }
        unused = [
            name
            for name in self.tensors
            if name not in expected and not re.fullmatch(self.without_weights, name)
        ]
        missing = [name for name in expected if name not in self.tensors]
        for what, names in (('has no', missing), ('has more than the model can hold:', unused)):
            if names:
                raise UserError(
                    f'{self.name} {what} {_some(names)}; it is damaged or of another architecture'
                )
        for name, shape in expected.items():
            if tuple(self.tensors[name].shape) != shape:
                raise UserError(
                    f'{self.name}: {name} has the shape {list(self.tensors[name].shape)}, its '
                    f'config makes it {list(shape)}; one of them is not of this model'
                )
        known = {path for entry in self.layout for path in entry.paths}
        if known != set(shapes):
            raise AssertionError(f'layout and parameters differ: {known ^ set(shapes)}')

    def _stored_shape(
        self,
        entry: TensorLayout,
        shapes: Mapping[str, Sequence[int]],
        groups: ParameterGroups,
    ) -> tuple[int, ...]:
        """Returns the shape of a tensor in the source: tables have no padding rows there."""
        if entry.paths[0] in TABLES:
            return (self.model.vocab_size, *shapes[entry.paths[0]][1:])
        return entry.shape(shapes, groups)


class ConfigReader:
    """A reader of another program's config that accounts for every key.

    The methods `take…` and `require` consume one key; `finish` rejects those that are left. Values
    are guaranteed to have the requested type.
    """

    def __init__(self, values: Any, *, name: str):
        if not isinstance(values, Mapping):
            raise UserError(f'{name} must map keys to values; restore the file')
        self._left = dict(values)
        self.name = name

    def take(self, key: str, *default: Any) -> Any:
        """Returns the value of a key, of any type, or the default.

        Raises:
            UserError: the key is absent and has no default.
        """
        value = self._left.pop(key, None)
        if value is not None:
            return value
        if not default:
            raise UserError(f'{self.name} has no {key!r}; restore the file')
        return default[0]

    def take_null(self, key: str) -> bool:
        """Consumes a key if its value is null; returns whether it was."""
        is_null = self._left.get(key, 0) is None
        if is_null:
            del self._left[key]
        return is_null

    def take_int(self, key: str, *default: Any) -> Any:
        """Returns the value of a key, an integer from 0 to `LARGEST`, or the default.

        Raises:
            UserError: the key is absent and has no default, or its value is invalid.
        """
        value = self.take(key, *default)
        right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if value is not None and not (right and 0 <= value <= LARGEST):
            raise self._wrong(key, value, f'a whole number from 0 to {LARGEST}')
        return value

    def take_float(self, key: str, *default: Any) -> Any:
        """Returns the value of a key, a finite number of at least 0, or the default.

        Raises:
            UserError: the key is absent and has no default, or its value is invalid.
        """
        value = self.take(key, *default)
        right = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if value is not None and not (right and 0 <= value <= sys.float_info.max):
            raise self._wrong(key, value, 'a number that is finite and not negative')
        return value if value is None else float(value)

    def take_bool(self, key: str, *default: Any) -> Any:
        """Returns the value of a key, a boolean, or the default.

        Raises:
            UserError: the key is absent and has no default, or its value is invalid.
        """
        value = self.take(key, *default)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, 'true or false')
        return value

    def take_list(self, key: str, kind: type | tuple[type, ...], *default: Any) -> Any:
        """Returns the value of a key, a list of values of type `kind`, or the default.

        Raises:
            UserError: the key is absent and has no default, or its value is invalid.
        """
        value = self.take(key, *default)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = ' or '.join(each.__name__ for each in kinds)
            raise self._wrong(key, value, f'a list of {names}')
        return value

    def require(self, key: str, *allowed: Any) -> Any:
        """Returns the value of a key that must be one of `allowed`; the first is the default.

        Raises:
            UserError: the key has another value.
        """
        value = self.take(key, allowed[0])
        if value not in allowed:
            raise UserError(
                f'{self.name} has {key}={_short(value)}, which is not supported; '
                f'supported: {", ".join(map(_short, allowed))}'
            )
        return value

    def finish(self, inert: Sequence[str]) -> None:
        """Rejects keys that were not consumed, except `inert` ones, which change no logit.

        Keys with an empty value (null, false, an empty string, list or object) are ignored.

        Raises:
            UserError: a key is left; the message names it.
        """
        for key, value in self._left.items():
            empty = value is None or value is False or value in ('', [], {})
            if key not in inert and not empty:
                raise UserError(
                    f'{self.name} has {key}={_short(value)}, which is not supported; weights that '
                    f'depend on it cannot be used; if no logit depends on it, leave it out with '
                    f'--ignore_key {key}'
                )

    def _wrong(self, key: str, value: Any, wanted: str) -> UserError:
        return UserError(f'{self.name} has {key}={_short(value)}, which must be {wanted}')


def without_keys(values: Mapping[str, Any], ignore_keys: Sequence[str], *, name: str) -> dict:
    """Returns another program's config without the keys that the user chose to ignore.

    Raises:
        UserError: there is no such key.
    """
    for key in ignore_keys:
        if key not in values:
            raise UserError(f'{name} has no key {key}; leave --ignore_key {key} out')
    return {key: value for key, value in values.items() if key not in ignore_keys}


def optional_text(value: Any, *, key: str) -> str | None:
    """Returns `value` if it is a string or None.

    Raises:
        UserError: it is of another type.
    """
    if value is not None and not isinstance(value, str):
        raise UserError(f'{key} must be a text, not {_short(value)}; correct the file')
    return value


def _short(value: Any) -> str:
    """Formats a value for one line of an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:80]}…'


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
