"""Reader and writer of safetensors: a single file, or several with an index.

The `safetensors` library validates and writes files. Reading uses numpy's memory maps: a device
that needs part of a tensor reads only that part of the file, and nothing stays in memory. The
format: https://huggingface.co/docs/safetensors.
"""

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.weights.source import StoredTensor

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
FILE_BYTES = 2 * 10**9  # maximum size of a file, unless a single tensor exceeds it
_DTYPES: dict[str, Any] = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': jnp.bfloat16,
}


def read(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """Returns the tensors of `model.safetensors`, or of the files that its index lists.

    Raises:
        UserError: there is neither; a file is damaged or missing; or a tensor has no float type.
    """
    if (folder / SINGLE).is_file():
        return read_file(folder / SINGLE)
    if not (folder / INDEX).is_file():
        old = any(folder.glob('pytorch_model*.bin'))
        hint = 'convert its pytorch_model.bin with save_pretrained' if old else 'correct the path'
        raise UserError(f'{folder} has no {SINGLE} and no {INDEX}; {hint}')
    index = files.read_json(folder / INDEX)
    weight_map = index.get('weight_map') if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise UserError(f'{folder / INDEX} has no weight_map; restore the file')
    for name in weight_map.values():
        # Never follow a path out of the folder.
        inside = isinstance(name, str) and len(name) < 256 and name != '..' and '\\' not in name
        if not inside or pathlib.PurePath(name).name != name:
            raise UserError(
                f'{folder / INDEX} lists the file {str(name)[:80]!r}, which must be the name of a '
                f'file of this folder; correct the weight_map'
            )
    tensors = {}
    for name in sorted(set(weight_map.values())):
        tensors |= read_file(folder / name)
    missing = weight_map.keys() - tensors.keys()
    if missing:
        raise UserError(f'{folder / INDEX} lists {min(missing)}, which no file holds')
    return tensors


def read_file(path: pathlib.Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one file.

    Raises:
        UserError: the file is missing or damaged, or a tensor has no float type.
    """
    try:
        with safetensors.safe_open(path, 'numpy'):  # compares header, offsets and size
            pass
        with path.open('rb') as file:
            size = int.from_bytes(file.read(8), 'little')
            header = json.loads(file.read(size))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f'{path} is missing or damaged ({error}); fetch it again') from error
    tensors = {}
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        if entry['dtype'] not in _DTYPES:
            raise UserError(
                f'{path}: {name} has the type {entry["dtype"]}; only {", ".join(_DTYPES)} are read'
            )
        shape = tuple(entry['shape'])
        view = functools.partial(
            np.memmap,
            path,
            dtype=np.dtype(_DTYPES[entry['dtype']]),
            mode='r',
            offset=8 + size + entry['data_offsets'][0],
            shape=shape,
        )
        tensors[name] = StoredTensor(shape, view)
    return tensors


def write(
    folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]
) -> list[str]:
    """Writes named tensors, buffering at most one file of them; returns the names of the files.

    Raises:
        UserError: a file cannot be written.
    """
    weight_map: dict[str, int] = {}
    waiting: dict[str, np.ndarray] = {}
    parts = total = 0

    def flush() -> None:
        nonlocal parts
        parts += 1
        with files.atomic_file(folder / _part_name(parts)) as file:
            file.write(safetensors.numpy.save(waiting, dict(metadata)))
        weight_map.update(dict.fromkeys(waiting, parts))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and sum(t.nbytes for t in waiting.values()) + tensor.nbytes > FILE_BYTES:
            flush()
        waiting[name] = tensor
        total += tensor.nbytes
    flush()
    if parts == 1:
        (folder / _part_name(1)).replace(folder / SINGLE)
        return [SINGLE]
    names = [f'model-{part:05d}-of-{parts:05d}.safetensors' for part in range(1, parts + 1)]
    for part, name in enumerate(names, 1):
        (folder / _part_name(part)).replace(folder / name)
    index = {
        'metadata': {'total_size': total},
        'weight_map': {name: names[part - 1] for name, part in weight_map.items()},
    }
    files.write_json(folder / INDEX, index)
    return [*names, INDEX]


def _part_name(part: int) -> str:
    return f'.part-{part}.safetensors'
