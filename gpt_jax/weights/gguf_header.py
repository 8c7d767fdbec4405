"""Parser of the header of a GGUF file: metadata, and the offsets of the tensors.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every size in the header is
checked against the size of the file before memory is allocated for it.
"""

import mmap
import pathlib
import struct
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.errors import UserError

ARCHITECTURE = 'general.architecture'
_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q',
            12: 'd'}  # fmt: skip
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


class TensorInfo(NamedTuple):
    """Name, shape, type and offset of a tensor in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int  # a ggml_type
    offset: int  # from the start of the data


class Header(NamedTuple):
    """The parsed header: metadata, tensors, and the offset of the data."""

    metadata: dict[str, Any]
    tensors: list[TensorInfo]
    data_offset: int


class _TornError(Exception):
    """The error for bytes that are not a GGUF file's."""


def read_header(path: pathlib.Path, architectures: Collection[str]) -> Header:
    """Reads the header, checking the architecture before reading the vocabulary that follows.

    Raises:
        UserError: the file is damaged, has the other byte order, or an unknown architecture.
    """
    try:
        with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(data, path).header(architectures)
    except (_TornError, ValueError, struct.error, OSError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{path} is not a GGUF file, or is truncated ({reason}); fetch it again'
        ) from error


class _Parser:
    def __init__(self, data: mmap.mmap, path: pathlib.Path):
        self._data, self._path = data, path
        self._at = 0

    def header(self, architectures: Collection[str]) -> Header:
        if self._bytes(4) != _MAGIC:
            raise _TornError('it does not begin with GGUF')
        version = self._number('I')
        if version & 0xFFFF == 0 and version:
            raise UserError(
                f'{self._path} has the other byte order; convert it with gguf-convert-endian'
            )
        if version not in _VERSIONS:
            raise _TornError(f'version {version}')
        num_tensors, num_keys = self._number('Q'), self._number('Q')
        self._claim(num_tensors, 24)
        self._claim(num_keys, 12)
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise _TornError(f'{key[:80]} occurs twice')
            metadata[key] = self._value(self._number('I'))
            if key == ARCHITECTURE:
                _check_architecture(metadata[key], architectures, self._path)
        _check_architecture(metadata.get(ARCHITECTURE), architectures, self._path)
        tensors = [self._tensor() for _ in range(num_tensors)]
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise _TornError('two tensors have one name')
        alignment = metadata.get('general.alignment', 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise _TornError('general.alignment is no power of two')
        return Header(metadata, tensors, -(-self._at // alignment) * alignment)

    def _claim(self, count: int, size: int) -> int:
        """Returns `count` after checking that the rest of the file can hold as many items."""
        if count * size > len(self._data) - self._at:
            raise _TornError(f'{count} items are more than the file holds')
        return count

    def _bytes(self, size: int) -> bytes:
        start, self._at = self._at, self._at + self._claim(size, 1)
        return self._data[start : self._at]

    def _number(self, kind: str) -> Any:
        size = struct.calcsize(f'<{kind}')
        return struct.unpack(f'<{kind}', self._bytes(size))[0]

    def _string(self) -> str:
        return self._bytes(self._number('Q')).decode()

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            value = self._number(_SCALARS[kind])
            return as_decimal(value) if kind == _FLOAT32 else value
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise _TornError(f'a value of type {kind}')
        kind, count = self._number('I'), self._number('Q')
        if kind == _STRING:
            return [self._string() for _ in range(self._claim(count, 8))]
        if kind not in _SCALARS:
            raise _TornError(f'a list of type {kind}')
        dtype = np.dtype(f'<{_SCALARS[kind]}')
        return np.frombuffer(self._bytes(self._claim(count, dtype.itemsize) * dtype.itemsize),
                             dtype).tolist()  # fmt: skip

    def _tensor(self) -> TensorInfo:
        name, dimensions = self._string(), self._number('I')
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise _TornError(f'{name[:80]} has {dimensions} dimensions')
        shape = [self._number('Q') for _ in range(dimensions)]
        if min(shape) < 1:
            raise _TornError(f'{name[:80]} has a dimension of 0')
        return TensorInfo(name, tuple(reversed(shape)), self._number('I'), self._number('Q'))


def as_decimal(value: float) -> float:
    """Returns the shortest decimal that rounds to a float32: 1e-5, not 9.9999997e-06."""
    return float(str(np.float32(value)))


def _check_architecture(found: Any, known: Collection[str], path: pathlib.Path) -> None:
    if found not in known:
        raise UserError(
            f'{path} has {ARCHITECTURE}={str(found)[:80]!r}, which is not supported; supported: '
            f'{", ".join(known)}'
        )
