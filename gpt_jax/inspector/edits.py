"""Changes of a forward pass: ablation, patching and steering of points."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inspector.forward import Change
from gpt_jax.inspector.inspection import Inspection, NamedArray, check_index
from gpt_jax.inspector.points import Point, check_point, resolve


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of one point; `zero`, `mean`, `replace` and `add` make them."""

    point: str
    how: Literal['zero', 'mean', 'replace', 'add']
    value: Any = None
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def resolve(self, points: dict[str, Point], *, layers: int) -> list[str]:
        """Returns the names of the points that are changed: one, or that of every layer named.

        Raises:
            UserError: the model has no such point, or no such layers.
        """
        name = resolve(self.point)
        chosen = self.where.get('layer', slice(None))
        if name in points:
            if 'layer' in self.where:
                raise UserError(f'{self.point} is one point; leave out layer={chosen!r}')
            return [name]
        chosen = range(layers)[chosen] if isinstance(chosen, slice) else chosen
        numbers = check_index('layer', chosen, layers)
        names = [resolve(self.point, number) for number in np.atleast_1d(numbers).tolist()]
        return [check_point(each, points, layers=layers) for each in names]

    def change(self, name: str, point: Point, before: np.ndarray | None) -> Change:
        """Returns the change of a point.

        Args:
          name: of the point.
          point: its dimensions.
          before: its value without edits; only `mean` needs it.

        Raises:
            UserError: a dimension or an index is wrong, or the value does not fit.
        """
        mask = np.ones((1,) * len(point.dims), bool)
        for dim, index in self.where.items():
            if dim == 'layer':
                continue
            if dim not in point.dims:
                raise UserError(
                    f'{self.point} has no dimension {dim!r}; it has {", ".join(point.dims)}'
                )
            axis = point.dims.index(dim)
            size = point.shape[axis]
            chosen = np.zeros(size, bool)
            at = index if isinstance(index, slice) else check_index(dim, index, size)
            chosen[at] = True
            mask = mask & chosen.reshape([-1 if i == axis else 1 for i in range(len(point.dims))])
        if self.how == 'zero':
            return Change(mask, np.float32(0))
        if self.how == 'mean':
            axis = point.dims.index('position') if 'position' in point.dims else None
            if axis is None:
                raise UserError(f'{self.point} has no positions to take the mean over')
            return Change(mask, before.mean(axis, keepdims=True))
        value = self._value(name, point)
        if self.how == 'replace':
            return Change(mask, value)
        return Change(added=np.where(mask, value, np.float32(0)))

    def _value(self, name: str, point: Point) -> np.ndarray:
        value = self.value[name] if isinstance(self.value, Inspection) else self.value
        value = value.values if isinstance(value, NamedArray) else np.asarray(value)
        if value.dtype.kind not in 'biuf':
            raise UserError(f'the value for {name} must be numbers, and not {self.value!r}')
        if isinstance(self.value, Inspection):
            fits = value.shape == point.shape
        else:
            fits = len(value.shape) <= len(point.shape) and all(
                ours in (1, theirs)
                for ours, theirs in zip(value.shape[::-1], point.shape[::-1], strict=False)
            )
        if not fits:
            raise UserError(
                f'a value of shape {value.shape} does not fit {name}, which is '
                f'{dict(zip(point.dims, point.shape, strict=True))}'
            )
        return value.astype(np.float32)


def zero(point: str, **where: Any) -> Edit:
    """Sets a point to 0, or the part of it that `where` selects.

    `zero('attention.heads', layer=3, head=[0, 5])` ablates two heads.

    Args:
      point: its name, with or without the layer.
      **where: indices by dimension: layer, head, position, neuron …
    """
    return Edit(point, 'zero', where=where)


def mean(point: str, **where: Any) -> Edit:
    """Sets a point to its mean over the positions of the text in a pass without edits."""
    return Edit(point, 'mean', where=where)


def replace(point: str, value: Any, **where: Any) -> Edit:
    """Sets a point to a value: an array, or the value in another inspection (patching).

    Meng et al. 2022, https://arxiv.org/abs/2202.05262. A text to patch from must have as many
    tokens.
    """
    return Edit(point, 'replace', value, where)


def add(point: str, value: Any, **where: Any) -> Edit:
    """Adds a value to a point (steering); Turner et al. 2023, https://arxiv.org/abs/2308.10248."""
    return Edit(point, 'add', value, where)


def changes_of(
    edits: Sequence[Edit],
    points: dict[str, Point],
    before: Mapping[str, np.ndarray],
    *,
    layers: int,
) -> dict[str, list[Change]]:
    """Returns the changes of edits by name of the point, in their order.

    Args:
      edits: see `zero`, `mean`, `replace`, `add`.
      points: of the model.
      before: the values of the points that `mean` needs.
      layers: of the model.

    Raises:
        UserError: an edit does not fit the model.
    """
    changes: dict[str, list[Change]] = {}
    for edit in edits:
        for name in edit.resolve(points, layers=layers):
            changes.setdefault(name, []).append(edit.change(name, points[name], before.get(name)))
    return changes
