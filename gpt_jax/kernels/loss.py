"""The kernels that turn logits into losses and gradients, and the choice of one."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gpt_jax.kernels.choice import choose, first_obstacle
from gpt_jax.kernels.loss_softmax import softmax_xla
from gpt_jax.kernels.loss_triton import softmax_triton, triton_obstacles


class SoftmaxKernel(NamedTuple):
    """A kernel, the dtype of its logits, and the reasons why it cannot run."""

    softmax: Callable[..., Any]  # losses and gradients, like `softmax_xla`
    float32_logits: bool  # False: logits have the dtype of the hidden states
    obstacles: Callable[..., dict[str, bool]]


# `auto` takes the first without an obstacle.
LOSS_KERNELS = {
    'triton': SoftmaxKernel(softmax_triton, False, triton_obstacles),
    'xla': SoftmaxKernel(softmax_xla, True, lambda *, backend, vocab_parts: {}),
}


def choose_loss_kernel(asked: str, *, backend: str, vocab_parts: int = 1) -> str:
    """Returns the name of the kernel that a run gets on `backend` ('cpu', 'gpu', 'tpu').

    Args:
      asked: a name, or 'auto'.
      vocab_parts: number of devices that the output table's rows are sharded over.

    Raises:
        UserError: the kernel was requested by name and cannot run.
    """

    def obstacle(name: str) -> str:
        return first_obstacle(
            LOSS_KERNELS[name].obstacles(backend=backend, vocab_parts=vocab_parts)
        )

    return choose('config.train.loss_kernel', asked, LOSS_KERNELS, obstacle)
