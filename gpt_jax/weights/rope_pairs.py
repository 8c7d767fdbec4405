"""Conversion between the two orders of rotary pairs: neighbours or halves.

llama2.c, llama.cpp's llama and DeepSeek rotate the pairs `(2i, 2i + 1)` of a head, this model and
most of transformers `(i, i + K/2)`. Reordering the outputs of queries and keys makes the two equal.
"""

import numpy as np


def from_pairs(outputs: np.ndarray, width: int) -> np.ndarray:
    """Reorders the last `width` outputs of `[..., K]` from neighbouring pairs to halves."""
    return outputs[..., _order(outputs.shape[-1], width)]


def to_pairs(outputs: np.ndarray, width: int) -> np.ndarray:
    """Reorders the last `width` outputs of `[..., K]` from halves to neighbouring pairs."""
    return outputs[..., np.argsort(_order(outputs.shape[-1], width))]


def _order(size: int, width: int) -> np.ndarray:
    """Returns the indices of the neighbouring pairs' members, in the order of halves."""
    kept = size - width
    return np.r_[:kept, kept:size:2, kept + 1 : size : 2]
