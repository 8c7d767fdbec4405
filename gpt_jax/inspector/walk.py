"""One token's way through the network: its values, the code that computes them, checked numbers."""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config_tree import freeze
from gpt_jax.inspector.inspection import Inspection, NamedArray, check_index
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.points import apply_unrolled, name_of
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import abstract_params
from gpt_jax.model.layer_stack import to_executed

SHOWN = 5  # numbers of a vector


@dataclasses.dataclass(frozen=True)
class Check:
    """A number computed again from shown ones, and the model's."""

    text: str
    computed: float
    expected: float

    def __str__(self) -> str:
        return f'{self.text} = {number(self.computed)}; the model has {number(self.expected)}'


@dataclasses.dataclass(frozen=True)
class Step:
    """One computation of the forward pass, with its numbers."""

    title: str
    about: str = ''
    formula: str = ''  # with shapes
    code: tuple[Any, ...] = ()  # the classes and functions that compute it
    lines: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def places(self) -> list[str]:
        """The file, line and name of the code of the step."""
        return [place(each) for each in dict.fromkeys(self.code)]


def place(code: Any) -> str:
    """Returns the file, the first line and the name of a class or function."""
    code = inspect.unwrap(code)
    path = pathlib.Path(inspect.getsourcefile(code)).resolve()
    root = pathlib.Path(__file__).resolve().parents[2]
    path = path.relative_to(root) if path.is_relative_to(root) else path
    return f'{path}:{inspect.getsourcelines(code)[1]} {code.__qualname__}'


@dataclasses.dataclass(frozen=True)
class Walk:
    """A forward pass, seen from one token, one head and one layer."""

    inspector: Inspector
    values: Inspection
    token: int
    layer: int
    head: int

    @classmethod
    def make(cls, inspector: Inspector, text: Text, *, token: int, layer: int, head: int) -> 'Walk':
        """Runs the model. Raises UserError if the text does not fit or an index is out of range."""
        values = inspector.inspect(text)
        return cls(
            inspector,
            values,
            check_index('token', token, len(values.tokens)),
            check_index('layer', layer, inspector.config.num_layers),
            check_index('head', head, inspector.config.num_heads),
        )

    @property
    def config(self) -> ModelConfig:
        """The config as the layer reads it."""
        return self.inspector.config.of_layer(self.layer)

    @property
    def name(self) -> str:
        """The layer in a title."""
        return f'Layer {self.layer}'

    @functools.cached_property
    def params(self) -> Mapping[str, Any]:
        """The parameters by module, `blocks.0.attention` for example."""
        executed = to_executed(self.inspector.params, self.inspector.config, scan=False)
        found: dict[str, Any] = {}

        def note(path: tuple[str, ...], tree: Any) -> None:
            if path:
                found[name_of(path[:-1], path[-1].removeprefix('layer_'))] = tree
            for key, each in tree.items():
                if isinstance(each, Mapping):
                    note((*path, key), each)

        note((), executed)
        return found

    def has(self, point: str) -> bool:
        """Returns whether the model has a point, of this layer or outside of all."""
        return self._name(point) in self.values.arrays

    def all(self, point: str) -> NamedArray:
        """Returns the values of a point of this layer, or of one outside of all layers."""
        return self.values[self._name(point)]

    def at(self, point: str) -> np.ndarray:
        """Returns the values of a point at the token."""
        values = self.all(point)
        axis = 'position' if 'position' in values.dims else 'source'  # of keys and values
        return values.sel(**{axis: self.token}).values

    def params_of(self, module: str) -> Mapping[str, np.ndarray]:
        """Returns the parameters of a module of this layer, or of one outside; {} without."""
        return self.params.get(self._name(module, self.params), {})

    def code(self, module: str) -> tuple[type, ...]:
        """Returns the class of a module of this layer, or of one outside; () if none is called."""
        classes = module_classes(freeze(self.inspector.config), len(self.values.tokens))
        found = classes.get(self._name(module, classes))
        return () if found is None else (found,)

    def _name(self, short: str, names: Mapping[str, Any] | None = None) -> str:
        names = self.values.arrays if names is None else names
        full = f'blocks.{self.layer}.{short}'
        return full if full in names else short


@functools.lru_cache(maxsize=8)
def module_classes(config: ModelConfig, length: int) -> dict[str, type]:
    """Returns the class of every module that the model calls, by its name.

    Args:
      config: the model's, frozen.
      length: number of tokens.
    """
    found: dict[str, type] = {}

    def note(next_function, args, kwargs, context):
        if context.method_name == '__call__' and context.module.path:
            *path, name = context.module.path
            found[name_of(tuple(path), name.removeprefix('layer_'))] = type(context.module)
        return next_function(*args, **kwargs)

    run = lambda params, tokens: apply_unrolled(config, params, tokens, note)  # noqa: E731
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    jax.eval_shape(run, nn.unbox(abstract_params(config)), tokens)
    return found


def number(value: float) -> str:
    """Returns a number with four decimals, or in powers of ten if these do not show it."""
    value = float(value)
    return f'{value:.4f}' if value == 0 or 1e-3 <= abs(value) < 1e5 else f'{value:.3e}'


def vector(name: str, values: np.ndarray, *, width: int = 10) -> str:
    """Returns a line with the name of a vector, its first numbers and its norm."""
    shown = ' '.join(f'{number(each):>8}' for each in values[:SHOWN])
    more = ' …' if len(values) > SHOWN else '  '
    return f'{name:<{width}}{shown}{more} norm {np.linalg.norm(values):.3f}'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; the first column is left-aligned."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        '  '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def quoted(text: str, limit: int = 14) -> str:
    """Returns the text of a token in quotes, shortened."""
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 2] + '…' + shown[-1]


def shape(*sizes: int) -> str:
    """Returns a shape: `[9, 32]`."""
    return '[' + ', '.join(map(str, sizes)) + ']'
