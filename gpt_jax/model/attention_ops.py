"""Score kernels: scaled dot-product attention, one function a backend behind one signature.

`attend_xla` is the reference: it can express everything. Another kernel states its obstacles,
and asking for it where one holds is an error, never a silent fallback.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from gpt_jax.errors import UserError
from gpt_jax.model.attention_cudnn import attend_cudnn, cudnn_obstacles
from gpt_jax.model.attention_splash import attend_splash, splash_obstacles
from gpt_jax.model.attention_xla import attend_xla
from gpt_jax.model.config import AttentionKernel, ModelConfig


class ScoreKernel(NamedTuple):
    """A kernel, and each reason why it cannot run: `obstacles(config, backend=, segments=)`."""

    attend: Callable[..., jax.Array]  # the signature is `attend_xla`'s
    obstacles: Callable[..., dict[str, bool]]


# `auto` takes the first without an obstacle, so the fused kernels stand before the reference.
ATTENTION_KERNELS = {
    AttentionKernel.CUDNN: ScoreKernel(attend_cudnn, cudnn_obstacles),
    AttentionKernel.SPLASH: ScoreKernel(attend_splash, splash_obstacles),
    AttentionKernel.XLA: ScoreKernel(attend_xla, lambda config, *, backend, segments: {}),
}


def kernel_obstacle(
    kernel: AttentionKernel, config: ModelConfig, *, backend: str, segments: bool
) -> str:
    """Why `kernel` cannot run `config` on `backend`; empty when it can."""
    obstacles = ATTENTION_KERNELS[kernel].obstacles(config, backend=backend, segments=segments)
    return next((obstacle for obstacle, present in obstacles.items() if present), '')


def resolve_kernel(config: ModelConfig, *, backend: str, segments: bool) -> AttentionKernel:
    """The kernel that `config` gets on `backend` ('cpu', 'gpu', 'tpu').

    Raises:
        UserError: the kernel was asked for by name and cannot run.
    """
    asked = config.attention_kernel
    candidates = ATTENTION_KERNELS if asked == AttentionKernel.AUTO else [asked]
    for kernel in candidates:
        obstacle = kernel_obstacle(kernel, config, backend=backend, segments=segments)
        if not obstacle:
            return kernel
    raise UserError(
        f'config.model.attention_kernel={asked} cannot run: {obstacle}; '
        f'change that or set config.model.attention_kernel=auto'
    )
