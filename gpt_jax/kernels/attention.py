"""The attention kernels, and the choice of one for a backend.

Each kernel lists its obstacles. Requesting a kernel by name where an obstacle holds is an error,
never a silent fallback. 'xla' is the plain attention of the network, which supports everything.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from gpt_jax.kernels.attention_blocked import attend_blocked, blocked_obstacles, blocked_takes
from gpt_jax.kernels.attention_config import AttentionConfig
from gpt_jax.kernels.attention_cudnn import attend_cudnn, cudnn_obstacles
from gpt_jax.kernels.attention_ring import attend_ring
from gpt_jax.kernels.attention_splash import attend_splash, splash_obstacles
from gpt_jax.kernels.choice import PLAIN, choose, first_obstacle
from gpt_jax.kernels.scores import ScoreOptions


class ScoreKernel(NamedTuple):
    """A kernel, the reasons why it cannot run, and the calls that it supports."""

    attend: Callable[..., jax.Array]  # (q_BLHK, k_BSGK, v_BSGK, ScoreOptions) -> out_BLHK
    obstacles: Callable[..., dict[str, bool]] = lambda config, *, backend, segments: {}
    takes: Callable[..., bool] = lambda options, *, queries, keys: True
    splits_sequence: bool = False  # requires sequences that are sharded over devices


# `auto` takes the first without an obstacle, or else plain attention.
ATTENTION_KERNELS = {
    'cudnn': ScoreKernel(attend_cudnn, cudnn_obstacles),
    'splash': ScoreKernel(attend_splash, splash_obstacles),
    'ring': ScoreKernel(attend_ring, splits_sequence=True),
    'blocked': ScoreKernel(attend_blocked, blocked_obstacles, blocked_takes),
}


def find_kernel(
    name: str, options: ScoreOptions, *, queries: int, keys: int
) -> Callable[..., jax.Array] | None:
    """Returns the function of a kernel, or None if plain attention must compute this call."""
    kernel = ATTENTION_KERNELS.get(name)
    if kernel is None or not kernel.takes(options, queries=queries, keys=keys):
        return None
    return kernel.attend


def kernel_obstacle(
    name: str, config: AttentionConfig, *, backend: str, segments: bool, context: int = 1
) -> str:
    """Returns the reason why a kernel cannot run `config` on `backend`, or '' if it can.

    Args:
      segments: packed documents do not attend to each other.
      context: number of devices that a sequence is sharded over.
    """
    kernel = ATTENTION_KERNELS.get(name)
    splits = kernel is not None and kernel.splits_sequence
    obstacles = {
        f'the sequence is sharded by config.mesh.context={context}': (context > 1 and not splits),
        'the sequence is not sharded by config.mesh.context=1': (context == 1 and splits),
    }
    if kernel is not None:
        obstacles |= kernel.obstacles(config, backend=backend, segments=segments)
    return first_obstacle(obstacles)


def choose_kernel(
    config: AttentionConfig, *, backend: str, segments: bool, context: int = 1
) -> str:
    """Returns the name of the kernel that `config` gets on `backend` ('cpu', 'gpu', 'tpu').

    Args:
      segments: packed documents do not attend to each other.
      context: number of devices that a sequence is sharded over.

    Raises:
        UserError: the kernel was requested by name and cannot run.
    """

    def obstacle(name: str) -> str:
        return kernel_obstacle(name, config, backend=backend, segments=segments, context=context)

    return choose(
        'config.model.execution.attention_kernel',
        config.execution.attention_kernel,
        [*ATTENTION_KERNELS, PLAIN],
        obstacle,
    )
