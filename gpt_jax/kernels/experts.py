"""The product of a mixture of experts: its kernels, and the choice of one for a backend.

Rows that are sorted by expert are multiplied by the matrix of their expert. Each kernel has the
signature `(x_TD, kernel_EDF, sizes_E) -> y_TF`:

- Expert `e` has the next `sizes_E[e]` rows of `x_TD`; row `t` becomes `x_TD[t] @ kernel_EDF[e]`.
- `sizes_E` may sum to less than T. The rows after the last group become zero and get no gradient.
- The result has the dtype of `x_TD` and `kernel_EDF`; bfloat16 is accumulated in float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.kernels.choice import PLAIN, choose
from gpt_jax.kernels.experts_blocked import multiply_blocked
from gpt_jax.kernels.experts_vjp import accumulator, with_gradients


class ExpertKernel(NamedTuple):
    """A kernel, the backends that it is for, and the reason not to use it on others."""

    multiply: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    backends: tuple[str, ...]
    reason: str


def multiply_xla(
    x_TD: Float[Array, 'T D'], kernel_EDF: Float[Array, 'E D F'], sizes_E: Int[Array, ' E']
) -> Float[Array, 'T F']:
    """Computes the product by multiplying every row by every expert; costs E times the FLOPs."""
    ends_E = jnp.cumsum(sizes_E)
    rows_T1 = jnp.arange(x_TD.shape[0])[:, None]

    def add_expert(y_TF, expert):
        kernel_DF, start, end = expert
        product_TF = jnp.matmul(x_TD, kernel_DF, preferred_element_type=accumulator(x_TD.dtype))
        mine_T1 = (start <= rows_T1) & (rows_T1 < end)
        return jnp.where(mine_T1, product_TF.astype(y_TF.dtype), y_TF), None

    y_TF = jnp.zeros((x_TD.shape[0], kernel_EDF.shape[2]), x_TD.dtype)
    return jax.lax.scan(add_expert, y_TF, (kernel_EDF, ends_E - sizes_E, ends_E))[0]


def _ragged(x_TD, kernel_EDF, sizes_E):
    # Some backends leave the rows after the last group undefined, also in the gradient of x.
    valid_T1 = jnp.arange(x_TD.shape[0])[:, None] < sizes_E.sum()
    y_TF = jax.lax.ragged_dot(
        jnp.where(valid_T1, x_TD, 0),
        kernel_EDF,
        sizes_E,
        preferred_element_type=accumulator(x_TD.dtype),
    )
    return jnp.where(valid_T1, y_TF, 0).astype(x_TD.dtype)


def _ragged_gradients(x_TD, kernel_EDF, sizes_E, dy_TF):
    # A vjp would compute the product once more outside of jit.
    (dx_TD,) = jax.linear_transpose(lambda x: _ragged(x, kernel_EDF, sizes_E), x_TD)(dy_TF)
    (dk_EDF,) = jax.linear_transpose(lambda kernel: _ragged(x_TD, kernel, sizes_E), kernel_EDF)(
        dy_TF
    )
    return dx_TD, dk_EDF


_multiply_ragged = with_gradients(_ragged, _ragged_gradients)


def multiply_ragged(
    x_TD: Float[Array, 'T D'], kernel_EDF: Float[Array, 'E D F'], sizes_E: Int[Array, ' E']
) -> Float[Array, 'T F']:
    """Computes the product by `jax.lax.ragged_dot`, which GPUs and TPUs may have a kernel for."""
    return _multiply_ragged(x_TD, kernel_EDF, sizes_E)


# `auto` takes the first that is for the backend, or else the plain product.
EXPERT_KERNELS = {
    'ragged': ExpertKernel(
        multiply_ragged, ('gpu', 'tpu'), 'it multiplies every row by every expert there'
    ),
    'blocked': ExpertKernel(multiply_blocked, ('cpu',), 'its blocks run one after another'),
}


def choose_expert_kernel(asked: str, *, backend: str) -> str:
    """Returns the name of the kernel that runs on `backend` ('cpu', 'gpu', 'tpu').

    `asked` is a name, or 'auto'.

    Raises:
        UserError: the kernel was requested by name and is not for this backend.
    """

    def obstacle(name: str) -> str:
        if name == PLAIN or backend in EXPERT_KERNELS[name].backends:
            return ''
        return f'the backend is {backend}, and {EXPERT_KERNELS[name].reason}'

    return choose('config.model.execution.expert_kernel', asked, [*EXPERT_KERNELS, PLAIN], obstacle)


def find_expert_kernel(name: str) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Returns the product of a name that `choose_expert_kernel` returned."""
    return multiply_xla if name == PLAIN else EXPERT_KERNELS[name].multiply
