"""How a chunk's logits become losses and gradients: one function a backend, and the choice."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gpt_jax.config import LossKernel
from gpt_jax.errors import UserError
from gpt_jax.train.loss_softmax import softmax_xla
from gpt_jax.train.loss_triton import softmax_triton, triton_obstacles


class SoftmaxKernel(NamedTuple):
    """A kernel, what it asks of its input, and each reason why it cannot run."""

    softmax: Callable[..., Any]  # losses and gradients, as `softmax_xla` returns them
    float32_logits: bool  # else they have the dtype of the hidden states
    obstacles: Callable[..., dict[str, bool]]


# `auto` takes the first without an obstacle.
LOSS_KERNELS = {
    LossKernel.TRITON: SoftmaxKernel(softmax_triton, False, triton_obstacles),
    LossKernel.XLA: SoftmaxKernel(softmax_xla, True, lambda *, backend, vocab_parts: {}),
}


def resolve_loss_kernel(asked: LossKernel, *, backend: str, vocab_parts: int = 1) -> LossKernel:
    """The kernel that a run gets on `backend` ('cpu', 'gpu', 'tpu').

    `vocab_parts` counts the devices that the output table's rows are split over.

    Raises:
        UserError: the kernel was asked for by name and cannot run.
    """
    for kernel in LOSS_KERNELS if asked == LossKernel.AUTO else [asked]:
        obstacles = LOSS_KERNELS[kernel].obstacles(backend=backend, vocab_parts=vocab_parts)
        obstacle = next((reason for reason, present in obstacles.items() if present), '')
        if not obstacle:
            return kernel
    raise UserError(
        f'config.train.loss_kernel={asked} cannot run: {obstacle}; '
        f'change that or set config.train.loss_kernel=auto'
    )
