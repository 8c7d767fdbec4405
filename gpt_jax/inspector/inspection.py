"""The values of a model's points for one text."""

import dataclasses
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inspector.points import Point, check_point, resolve


@dataclasses.dataclass(frozen=True)
class NamedArray:
    """An array whose dimensions have names."""

    values: np.ndarray
    dims: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each dimension."""
        return dict(zip(self.dims, self.values.shape, strict=True))

    def sel(self, **indices: int | slice | Sequence[int]) -> 'NamedArray':
        """Returns the values at indices of dimensions; a single index removes its dimension.

        `weights.sel(layer=3, head=2)`; negative indices count from the end.

        Raises:
            UserError: there is no such dimension, or an index is out of range.
        """
        values, dims = self.values, list(self.dims)
        for dim, index in indices.items():
            axis = _axis(dim, tuple(dims))
            if isinstance(index, slice):
                values = values[(slice(None),) * axis + (index,)]
                continue
            values = values.take(check_index(dim, index, values.shape[axis]), axis)
            if np.ndim(index) == 0:
                del dims[axis]
        return NamedArray(values, tuple(dims))

    def mean(self, dim: str) -> 'NamedArray':
        """Returns the mean over a dimension. Raises UserError if there is none of this name."""
        axis = _axis(dim, self.dims)
        return NamedArray(self.values.mean(axis), self.dims[:axis] + self.dims[axis + 1 :])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype) if copy else np.asarray(self.values, dtype)

    def __repr__(self) -> str:
        sizes = ', '.join(f'{dim}: {size}' for dim, size in self.sizes.items())
        return f'NamedArray({sizes})\n{self.values!r}'


def check_index(dim: str, index: Any, size: int) -> Any:
    """Returns an index or indices along a dimension, counted from its begin.

    Raises:
        UserError: one is no whole number, or out of range.
    """
    if np.ndim(index):
        return [check_index(dim, each, size) for each in index]
    try:
        number = operator.index(index)
    except TypeError:
        raise UserError(f'{dim}={index!r} must be a whole number') from None
    if not -size <= number < size:
        raise UserError(f'{dim}={number} is out of range; there are 0 to {size - 1}')
    return number % size


def _axis(dim: str, dims: tuple[str, ...]) -> int:
    if dim not in dims:
        raise UserError(f'there is no dimension {dim!r}; there are {", ".join(dims)}')
    return dims.index(dim)


@dataclasses.dataclass(frozen=True)
class Inspection(Mapping[str, NamedArray]):
    """One forward pass: tokens, and the values of points by name.

    `inspection['blocks.3.attention.weights']` is `[head, position, source]`, and
    `inspection['attention.weights']` has all layers, `[layer, head, position, source]`. Names of
    TransformerLens are understood: `blocks.3.attn.hook_pattern`.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]  # of each token
    arrays: Mapping[str, np.ndarray]
    points: Mapping[str, Point] = dataclasses.field(repr=False)
    num_layers: int

    @property
    def logits(self) -> NamedArray:
        """The logits of the token after each position, `[position, token]`."""
        return self['logits']

    def __getitem__(self, point: str) -> NamedArray:
        """Returns the values of a point, or of a point of all layers.

        Raises:
            UserError: the model has no such point, or it was not captured, or layers differ in
                its shape.
        """
        name = resolve(point)
        if name in self.points:
            return NamedArray(self._captured(name), self.points[name].dims)
        names = [resolve(point, layer) for layer in range(self.num_layers)]
        names = [each for each in names if each in self.points]
        if not names:
            check_point(name, dict(self.points), layers=self.num_layers)
        shapes = {self.points[each].shape for each in names}
        if len(shapes) > 1 or len(names) < self.num_layers:
            raise UserError(f'the layers differ in {point}; give one, such as {names[0]}')
        stacked = np.stack([self._captured(each) for each in names])
        return NamedArray(stacked, ('layer', *self.points[names[0]].dims))

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def _captured(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            short = re.sub(r'^blocks\.\d+\.', '', name)
            raise UserError(f'{name} was not captured; add {short!r} to points')
        return self.arrays[name]
