"""Conversion between the two orders of rotary pairs: neighbours or halves of a head.

llama2.c and llama.cpp's llama rotate the pairs `(2i, 2i + 1)`, this model and transformers
`(i, i + K/2)`. Reordering the rows of queries and keys makes the two equal.
"""

import numpy as np


def from_pairs(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of `[H*K, D]` from neighbouring pairs to halves."""
    return matrix.reshape(heads, -1, 2, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def to_pairs(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of `[H*K, D]` from halves to neighbouring pairs."""
    return matrix.reshape(heads, 2, -1, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)
