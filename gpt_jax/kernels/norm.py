"""The kernels of LayerNorm and RMSNorm, and the choice of one for a backend."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from gpt_jax.kernels.choice import PLAIN, choose
from gpt_jax.kernels.norm_triton import normalize_triton


class NormalizeKernel(NamedTuple):
    """A kernel, and the backend that it needs."""

    normalize: Callable[..., tuple[jax.Array, jax.Array]]  # like `model.norm.normalize`
    backend: str


# `auto` takes the first that can run, or else the plain norm.
NORM_KERNELS = {'triton': NormalizeKernel(normalize_triton, 'gpu')}


def choose_norm_kernel(asked: str, *, backend: str) -> str:
    """Returns the name of the kernel that runs on `backend` ('cpu', 'gpu', 'tpu').

    `asked` is a name, or 'auto'.

    Raises:
        UserError: the kernel was requested by name and cannot run.
    """

    def obstacle(name: str) -> str:
        if name == PLAIN or NORM_KERNELS[name].backend == backend:
            return ''
        return f'the backend is {backend}, not {NORM_KERNELS[name].backend}'

    return choose('config.model.execution.norm_kernel', asked, [*NORM_KERNELS, PLAIN], obstacle)
