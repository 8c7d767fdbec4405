"""Many changes of one forward pass: one compiled program, run in chunks of bounded memory."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from gpt_jax.inspector.analyses.base import ShowProgress
from gpt_jax.inspector.points import points_of
from gpt_jax.model.config import ModelConfig

BUDGET = 4 * 2**30  # bytes of activations of a chunk
COPIES = 3  # of the largest activations that a program holds at once
SMALLEST = 8  # candidates of a chunk that keep the cores busy
STEPS = 16  # of the progress display, where memory allows larger chunks

Grid = Mapping[str, tuple[int, ...]]  # the shape of the candidates of each point, layers first


def count_candidates(grid: Grid) -> int:
    """Returns the number of candidates of all points."""
    return sum(map(math.prod, grid.values()))


def split(grid: Grid, values: np.ndarray | jax.Array) -> dict[str, Any]:
    """Returns values `[candidate, …]` by point, in the shape of its candidates."""
    found, start = {}, 0
    for point, shape in grid.items():
        end = start + math.prod(shape)
        found[point] = values[start:end].reshape(*shape, *values.shape[1:])
        start = end
    return found


def is_chosen(grid: Grid, index: Int[Array, '']) -> dict[str, Bool[Array, '...']]:
    """Returns by point where candidate `index` is; nowhere if it is the number of candidates."""
    return split(grid, jnp.arange(count_candidates(grid)) == index)


def run_in_chunks(
    run: Callable[[Int[Array, 'C']], Any],
    count: int,
    *,
    bytes_each: int,
    progress: ShowProgress,
    description: str,
) -> Any:
    """Runs a program for indices 0 to `count - 1`; returns its results, `[count, …]`.

    Args:
      run: takes indices and returns a tree of arrays with as many rows. All calls have the same
        number of indices.
      count: number of candidates.
      bytes_each: memory of one of them.
      progress: makes the display.
      description: of the display.
    """
    size = chunk_size(count, bytes_each)
    parts = []
    with progress(count, unit='runs', description=description) as display:
        for start in range(0, count, size):
            indices = np.minimum(np.arange(start, start + size), count - 1)
            parts.append(jax.tree.map(np.asarray, run(indices)))
            display.update(min(start + size, count))
    return jax.tree.map(lambda *each: np.concatenate(each)[:count], *parts)


def chunk_size(count: int, bytes_each: int) -> int:
    """Returns the number of candidates that run at once."""
    wanted = max(SMALLEST, math.ceil(count / STEPS))
    return max(1, min(count, wanted, BUDGET // bytes_each))


def activation_bytes(config: ModelConfig, length: int) -> int:
    """Estimates the memory of one forward pass: its largest layer and the logits.

    Args:
      config: the model's.
      length: number of tokens.
    """
    layers: dict[str, int] = {}
    for name, point in points_of(config, length).items():
        layer = '.'.join(name.split('.')[:2])  # blocks.3, or the name of a point outside them
        layers[layer] = layers.get(layer, 0) + math.prod(point.shape)
    outside = layers.pop('logits')
    return COPIES * 4 * (outside + max(layers.values()))
