"""Score kernels: scaled dot-product attention, one function a backend behind one signature.

`attend_xla` is the reference: it can express everything. Another kernel states its obstacles,
and asking for it where one holds is an error, never a silent fallback.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from gpt_jax.errors import UserError
from gpt_jax.model.attention_blocked import attend_blocked, blocked_obstacles
from gpt_jax.model.attention_cudnn import attend_cudnn, cudnn_obstacles
from gpt_jax.model.attention_ring import attend_ring
from gpt_jax.model.attention_splash import attend_splash, splash_obstacles
from gpt_jax.model.attention_xla import attend_xla
from gpt_jax.model.config import AttentionKernel, ModelConfig


class ScoreKernel(NamedTuple):
    """A kernel, and each reason why it cannot run: `obstacles(config, backend=, segments=)`."""

    attend: Callable[..., jax.Array]  # the signature is `attend_xla`'s
    obstacles: Callable[..., dict[str, bool]]
    splits_sequence: bool = False  # runs where devices share a sequence, and only there


def _no_obstacles(config: ModelConfig, *, backend: str, segments: bool) -> dict[str, bool]:
    del config, backend, segments
    return {}


# `auto` takes the first without an obstacle, so the fused kernels stand before the reference.
ATTENTION_KERNELS = {
    AttentionKernel.CUDNN: ScoreKernel(attend_cudnn, cudnn_obstacles),
    AttentionKernel.SPLASH: ScoreKernel(attend_splash, splash_obstacles),
    AttentionKernel.RING: ScoreKernel(attend_ring, _no_obstacles, splits_sequence=True),
    AttentionKernel.BLOCKED: ScoreKernel(attend_blocked, blocked_obstacles),
    AttentionKernel.XLA: ScoreKernel(attend_xla, _no_obstacles),
}


def kernel_obstacle(
    kernel: AttentionKernel, config: ModelConfig, *, backend: str, segments: bool, context: int = 1
) -> str:
    """Why `kernel` cannot run `config` on `backend`; empty when it can.

    `context` is the number of parts that the sequence is split into over devices.
    """
    entry = ATTENTION_KERNELS[kernel]
    obstacles = {
        f'the sequence is split over devices by config.mesh.context={context}': (
            context > 1 and not entry.splits_sequence
        ),
        'the sequence is not split over devices by config.mesh.context=1': (
            context == 1 and entry.splits_sequence
        ),
        **entry.obstacles(config, backend=backend, segments=segments),
    }
    return next((obstacle for obstacle, present in obstacles.items() if present), '')


def resolve_kernel(
    config: ModelConfig, *, backend: str, segments: bool, context: int = 1
) -> AttentionKernel:
    """The kernel that `config` gets on `backend` ('cpu', 'gpu', 'tpu').

    `context` is the number of parts that the sequence is split into over devices.

    Raises:
        UserError: the kernel was asked for by name and cannot run.
    """
    asked = config.attention_kernel
    candidates = ATTENTION_KERNELS if asked == AttentionKernel.AUTO else [asked]
    for kernel in candidates:
        obstacle = kernel_obstacle(
            kernel, config, backend=backend, segments=segments, context=context
        )
        if not obstacle:
            return kernel
    raise UserError(
        f'config.model.attention_kernel={asked} cannot run: {obstacle}; '
        f'change that or set config.model.attention_kernel=auto'
    )
