"""Pre-trained weights as a reader found them, before they are this model's parameters."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.weights.layout import TABLES, TensorLayout


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # a view of the file where the format allows it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a reader makes of a file or folder."""

    name: str  # where it is, for messages
    model: ModelConfig  # the architecture, finalized
    layout: Sequence[TensorLayout]
    tensors: Mapping[str, StoredTensor]
    without_weights: str = ''  # pattern of tensors that hold none, such as causal masks
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None  # what makes text of conversations, in Jinja

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Makes sure that each tensor is used exactly once and has the shape that it must have.

        Args:
          shapes: of our parameters by path, without the dimension of layers.

        Raises:
            UserError: naming the tensor.
        """
        expected = {
            name: self.stored_shape(entry, shapes)
            for entry in self.layout
            for name in entry.names(self.model.num_layers)
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

    def stored_shape(
        self, entry: TensorLayout, shapes: Mapping[str, Sequence[int]]
    ) -> tuple[int, ...]:
        """The shape of a tensor of the layout: tables come without our padding."""
        if entry.paths[0] in TABLES:
            return (self.model.vocab_size, *shapes[entry.paths[0]][1:])
        return entry.shape(shapes)


class ConfigReader:
    """The config of another program, of which every key must be dealt with.

    `take` and `require` deal with one; `finish` refuses what is left.
    """

    def __init__(self, values: Mapping[str, Any], *, name: str):
        self._left = dict(values)
        self._name = name

    def take(self, key: str, *default: Any) -> Any:
        """The value of a key, else the default.

        Raises:
            UserError: the key is absent and has no default.
        """
        if key in self._left:
            value = self._left.pop(key)
            return default[0] if value is None and default else value
        if not default:
            raise UserError(f'{self._name} has no {key!r}; restore the file')
        return default[0]

    def require(self, key: str, *allowed: Any) -> Any:
        """The value of a key that may have only these; the first is its default.

        Raises:
            UserError: it has another value.
        """
        value = self.take(key, allowed[0])
        if value not in allowed:
            raise UserError(
                f'{self._name} has {key}={value!r}, which is not supported; '
                f'supported: {", ".join(map(repr, allowed))}'
            )
        return value

    def finish(self, inert: Sequence[str]) -> None:
        """Refuses keys that nothing dealt with, but for those that change no logit.

        Raises:
            UserError: naming one.
        """
        unknown = [key for key in self._left if key not in inert]
        if unknown:
            key = unknown[0]
            raise UserError(
                f'{self._name} has {key}={self._left[key]!r}, which is not supported; weights '
                f'that depend on it cannot be used'
            )


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
