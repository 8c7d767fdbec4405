"""The two orders of a head's rows: rotary pairs as neighbours, or as halves.

llama2.c and llama.cpp's llama turn the pairs `(2i, 2i + 1)`, this model and transformers
`(i, i + K/2)`. Reordering the rows of queries and keys makes the two equal.
"""

import numpy as np


def from_pairs(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of `[H*K, D]` from neighbouring pairs to halves."""
    return matrix.reshape(heads, -1, 2, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def to_pairs(matrix: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `from_pairs`."""
    return matrix.reshape(heads, 2, -1, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)
