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


def sweep(
    run: Callable[[int, Int[Array, 'C']], Any],
    grid: Grid,
    *,
    wanted: np.ndarray | None = None,
    bytes_each: int,
    progress: ShowProgress,
    description: str,
) -> Any:
    """Runs a program for the candidates of a grid, by layer, as it need not run those before.

    Returns its results `[candidate, …]` in the order of the grid; 0 for those not wanted.

    Args:
      run: takes the first layer of some candidates and their indices, and returns a tree of arrays
        with as many rows. All calls have the same number of indices.
      grid: the candidates.
      wanted: which of them to run; None: all.
      bytes_each: memory of one of them.
      progress: makes the display.
      description: of the display.
    """
    layers = np.concatenate([np.indices(shape)[0].ravel() for shape in grid.values()])
    chosen = np.arange(layers.size) if wanted is None else np.flatnonzero(wanted)
    order = chosen[np.argsort(layers[chosen], kind='stable')]
    size = chunk_size(order.size, bytes_each)
    parts = []
    with progress(order.size, unit='runs', description=description) as display:
        for start in range(0, order.size, size):
            indices = order[np.minimum(np.arange(start, start + size), order.size - 1)]
            parts.append(jax.tree.map(np.asarray, run(int(layers[indices[0]]), indices)))
            display.update(min(start + size, order.size))

    def arrange(*each: np.ndarray) -> np.ndarray:
        rows = np.concatenate(each)[: order.size]
        found = np.zeros((layers.size, *rows.shape[1:]), rows.dtype)
        found[order] = rows
        return found

    return jax.tree.map(arrange, *parts)


def effects(
    measure: Callable[[Int[Array, '']], Any], grid: Grid, indices_C: Int[Array, 'C']
) -> Any:
    """Returns what candidates change: measures `[C, …]` less that of no candidate."""
    found = jax.vmap(measure)(jnp.append(indices_C, count_candidates(grid)))
    return jax.tree.map(lambda values: values[:-1] - values[-1:], found)


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
