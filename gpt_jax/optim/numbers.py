"""Numbers of a config that the compiled training step takes as arguments.

A knob is a number if its field declares a domain of floats and its value is not 0. Zero turns a
part of the step off, so it stays a part of the program, as do counts, booleans and enums.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Number:
    """A float that is not 0, and its complement; both weakly typed scalars of float32 in a step.

    The complement `1 - value` is computed in Python's precision: in float32 the difference from 1
    would lose the last digits of a decay like 0.999.
    """

    value: Any
    complement: Any

    @classmethod
    def of(cls, value: float) -> 'Number':
        """Returns the number of a Python float."""
        return cls(value, 1 - value)

    def __bool__(self) -> bool:
        return True

    def __jax_array__(self) -> jax.Array:
        return self.value

    def __rsub__(self, one: float) -> Any:
        assert one == 1, 'only the complement is exact'
        return self.complement

    def __neg__(self) -> Any:
        return -self.value

    def __mul__(self, other: Any) -> Any:
        return self.value * other

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        return self.value + other

    __radd__ = __add__

    def __pow__(self, exponent: Any) -> Any:
        return self.value**exponent

    def __truediv__(self, divisor: Any) -> Any:
        return self.value / divisor

    def __rtruediv__(self, dividend: Any) -> Any:
        return dividend / self.value


def numbers_of(config: Any, *, only: Collection[str] | None = None) -> dict[str, Number]:
    """Returns the numbers of a config dataclass by field; `only` those of some fields."""
    return {
        field.name: Number.of(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if (only is None or field.name in only)
        and (domain := field.metadata.get('domain')) is not None
        and domain.kind is float
        and getattr(config, field.name) != 0
    }
