"""The kernels of LayerNorm and RMSNorm, and the choice of one for a backend."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

from gpt_jax.errors import UserError
from gpt_jax.kernels.norm_triton import normalize_triton

AUTO, PLAIN = 'auto', 'xla'


class NormConfig(Protocol):
    """The field of `ModelConfig` that the choice reads."""

    norm_kernel: str


class NormalizeKernel(NamedTuple):
    """A kernel, and the backend that it needs."""

    normalize: Callable[..., tuple[jax.Array, jax.Array]]  # like `model.norm.normalize`
    backend: str


# `auto` takes the first that can run, or else the plain norm.
NORM_KERNELS = {'triton': NormalizeKernel(normalize_triton, 'gpu')}


def choose_norm_kernel(config: NormConfig, *, backend: str) -> str:
    """Returns the name of the kernel that `config` gets on `backend` ('cpu', 'gpu', 'tpu').

    Raises:
        UserError: the kernel was requested by name and cannot run.
    """
    asked = config.norm_kernel
    for name in NORM_KERNELS if asked == AUTO else [asked]:
        if name == PLAIN or NORM_KERNELS[name].backend == backend:
            return name
    if asked == AUTO:
        return PLAIN
    raise UserError(
        f'config.model.norm_kernel={asked} cannot run: the backend is {backend}, not '
        f'{NORM_KERNELS[asked].backend}; set config.model.norm_kernel=auto'
    )
