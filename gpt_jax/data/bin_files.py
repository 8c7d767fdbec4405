"""Existing token files: nanoGPT's raw uint16 files and llm.c's files with a header.

They have no manifest. In a folder or glob, a file belongs to the split that its name contains
('train', 'val'), as in train.bin or fineweb_val_000000.bin. Documents begin at end-of-text tokens.
"""

import glob
import hashlib
import pathlib
import re

import numpy as np

from gpt_jax.data.split import TRAIN, VALIDATION
from gpt_jax.errors import UserError

# Matched at the start of a word only, so that pretrain_val.bin is not a file for training and
# retrieval_train.bin is not one for validation.
_NAME_PARTS = {TRAIN: 'train', VALIDATION: 'val'}
_HEADER_BYTES = 256 * 4
# (magic, version) of llm.c's header -> dtype of the tokens after it.
_HEADERS = {(20240520, 1): '<u2', (20240801, 7): '<u4'}
_RAW_DTYPE = '<u2'
_SAMPLE_BYTES = 2**20


def find_token_files(source: str | pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the .bin files of one split in a folder or glob, or the single file at `source`.

    Raises:
        UserError: there are none, or a name contains both splits.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_file() and split == TRAIN:
        return [path]  # the user named it, so its name does not matter
    if path.is_file():
        found = [path]
    else:
        pattern = f'{glob.escape(str(path))}/*.bin' if path.is_dir() else str(path)
        found = [pathlib.Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    part = _NAME_PARTS[split]
    named = {file: [each for each in _NAME_PARTS.values() if _has(file, each)] for file in found}
    if both := [file for file, parts in named.items() if len(parts) > 1]:
        raise UserError(f'{both[0]} is named for training and for validation; rename it')
    matching = [file for file, parts in named.items() if parts == [part]]
    if not matching:
        reason = 'no finished manifest.json and no .bin files' if not found else (
            f'no file with {part!r} in its name for the {split} split'
        )  # fmt: skip
        raise UserError(
            f'{source} has {reason}; name a prepared folder, or a folder or '
            'glob of .bin files named …train….bin and …val….bin'
        )
    return matching


def _has(file: pathlib.Path, part: str) -> bool:
    return re.search(rf'(?<![a-z]){part}', file.name.lower()) is not None


def open_token_file(path: pathlib.Path) -> np.ndarray:
    """Opens the tokens of a .bin file as a memory map.

    Raises:
        UserError: the file is truncated, empty, or has a header of an unknown version.
    """
    size = path.stat().st_size
    dtype, start = _RAW_DTYPE, 0
    header = np.fromfile(path, '<i4', 3) if size >= _HEADER_BYTES else np.zeros(3, '<i4')
    magic, version, tokens = map(int, header)
    if magic in {known for known, _ in _HEADERS}:
        if (magic, version) not in _HEADERS:
            raise UserError(
                f'{path} has an llm.c header of version {version}, which is unknown; '
                'write the file again with version 1'
            )
        dtype, start = _HEADERS[magic, version], _HEADER_BYTES
        if size != start + tokens * np.dtype(dtype).itemsize:
            raise UserError(
                f'{path} is truncated: its header says {tokens} tokens, but it has {size} bytes; '
                'fetch it again'
            )
    if size <= start or (size - start) % np.dtype(dtype).itemsize:
        raise UserError(f'{path} has {size} bytes, which is no whole number of tokens')
    return np.asarray(np.memmap(path, dtype, 'r', offset=start))


def sampled_fingerprint(arrays: list[np.ndarray]) -> str:
    """Hashes the sizes and 1 MiB at the start, the middle and the end of each file."""
    digest = hashlib.sha256()
    for array in arrays:
        step = max(1, _SAMPLE_BYTES // array.itemsize)
        digest.update(f'{array.dtype.str}{len(array)}'.encode())
        for start in (0, max(0, (len(array) - step) // 2), max(0, len(array) - step)):
            digest.update(array[start : start + step].tobytes())
    return digest.hexdigest()
