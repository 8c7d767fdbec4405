"""The values of a model's points for one text."""

import dataclasses
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inspector.page import frame
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

    name: ClassVar[str] = 'inspection'  # these five: of the page in a notebook
    title: ClassVar[str] = 'Points'
    about: ClassVar[str] = 'The root mean square of every point that was captured, and its values.'
    source: ClassVar[str] = ''
    pitfall: ClassVar[str] = 'A large value is not an important one; see the analyses.'

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

    def data(self) -> dict[str, NamedArray]:
        """Returns the root mean square of each point by layer and position, for the page."""
        short = dict.fromkeys(re.sub(r'^blocks\.\d+\.', '', name) for name in self.arrays)
        return {name: root_mean_square(array) for name in short if (array := self._stacked(name))}

    def rows(self) -> list[tuple[str, ...]]:
        """Returns a table of the points: their dimensions, and statistics of their values."""
        rows = [('point', 'dimensions', 'mean', 'standard deviation', 'least', 'largest')]
        for name, values in self.arrays.items():
            point, finite = self.points[name], values[np.isfinite(values)]
            sizes = ', '.join(f'{dim} {n}' for dim, n in zip(point.dims, point.shape, strict=True))
            numbers = (finite.mean(), finite.std(), finite.min(), finite.max())
            rows.append((name, sizes, *(f'{number:.3g}' for number in numbers)))
        return rows

    def _repr_html_(self) -> str:
        return frame([self])

    def _stacked(self, name: str) -> NamedArray | None:
        """Returns a point of all layers; None where they differ, or one is not captured."""
        try:
            return self[name]
        except UserError:
            return None

    def _captured(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            short = re.sub(r'^blocks\.\d+\.', '', name)
            raise UserError(f'{name} was not captured; add {short!r} to points')
        return self.arrays[name]


def root_mean_square(array: NamedArray) -> NamedArray:
    """Returns it over all dimensions but layer and position; of finite values only."""
    kept = tuple(dim for dim in array.dims if dim in ('layer', 'position'))
    axes = tuple(i for i, dim in enumerate(array.dims) if dim not in kept)
    values = array.values.astype(np.float32)
    mean = np.mean(values**2, axes, where=np.isfinite(values))
    return NamedArray(np.sqrt(mean), kept)
