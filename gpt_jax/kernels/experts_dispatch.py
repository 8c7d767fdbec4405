"""The MLPs of a mixture of experts on one device: rows go to their experts and come back.

Experts may be sharded over devices. Then each device sends every row to the device of its expert
and gets the result back, in buffers of a fixed size that hold the worst case, in which all rows
go to one device. So no row is dropped.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.kernels.experts import find_expert_kernel


def route(
    x: Float[Array, '... D'],
    gates: Float[Array, '... k'],
    experts: Int[Array, '... k'],
    *kernels: Float[Array, 'E I O'],
    activation: Callable[..., jax.Array],
    kernel: str,
    expert_axes: tuple[str, ...],
    mlp_axes: tuple[str, ...],
) -> tuple[Float[Array, '... D'], Float[Array, '...']]:
    """Returns the sum of each token's experts, weighted by its gates, and the number of drops.

    The latter counts the pairs of a token and an expert that found no room in the buffers of this
    device. Its dimensions have size 1; there is one for each of the tokens' dimensions.

    Args:
      x: the tokens of this device.
      gates: of each token's `k` experts.
      experts: their indices, all different.
      *kernels: `[E, D, F]` of each input of the activation, then `[E, F, D]`; this device's shards.
      activation: of the hidden values.
      kernel: of the products.
      expert_axes: the mesh axes that `E` is sharded over.
      mlp_axes: the mesh axes that `F` is sharded over.
    """
    k, D = experts.shape[-1], x.shape[-1]
    x_TD, experts_R = x.reshape(-1, D), experts.reshape(-1)
    shards = jax.lax.axis_size(expert_axes) if expert_axes else 1
    E = kernels[0].shape[0] * shards
    order_R = jnp.argsort(experts_R)
    inverse_R = jnp.argsort(order_R)
    sizes_E = jnp.bincount(experts_R, length=E).astype(jnp.int32)
    rows_RD = permute(jnp.repeat(x_TD, k, 0), order_R, inverse_R)
    run = _Experts(kernels, activation, kernel)
    if shards == 1:
        rows_RD, dropped = run(rows_RD, sizes_E), jnp.int32(0)
    else:
        rows_RD, dropped = _exchange(run, rows_RD, sizes_E, tokens=len(x_TD), k=k, axes=expert_axes)
    y_TkD = permute(rows_RD, inverse_R, order_R).reshape(-1, k, D)
    gates_Tk = gates.reshape(-1, k).astype(y_TkD.dtype)
    y_TD = jnp.einsum('TkD,Tk->TD', y_TkD, gates_Tk)
    y = jax.lax.psum(y_TD, mlp_axes).reshape(x.shape)
    return y, dropped.astype(jnp.float32).reshape((1,) * (x.ndim - 1))


@jax.custom_vjp
def permute(
    x: Float[Array, 'R D'], order_R: Int[Array, 'R'], inverse_R: Int[Array, 'R']
) -> Float[Array, 'R D']:
    """Returns `x[order_R]` for a permutation; the gradient gathers too, instead of scattering."""
    return x[order_R]


permute.defvjp(
    lambda x, order_R, inverse_R: (x[order_R], inverse_R),
    lambda inverse_R, dy: (dy[inverse_R], None, None),
)


class _Experts:
    """The MLPs of this device's experts."""

    def __init__(self, kernels: Sequence[jax.Array], activation: Callable, kernel: str):
        *self._into, self._down = kernels
        self._activation = activation
        self._multiply = find_expert_kernel(kernel)

    def __call__(self, rows_RD: jax.Array, sizes_E: jax.Array) -> jax.Array:
        """Returns the MLP of each row; rows are sorted by expert."""
        hidden = [self._multiply(rows_RD, kernel, sizes_E) for kernel in self._into]
        return self._multiply(self._activation(*hidden), self._down, sizes_E)


def _exchange(
    run: _Experts, rows_RD: jax.Array, sizes_E: jax.Array, *, tokens: int, k: int, axes
) -> tuple[jax.Array, jax.Array]:
    """Runs rows that are sorted by expert on the devices of their experts.

    Returns the results, and the number of rows that were not sent.
    """
    shards = jax.lax.axis_size(axes)
    sizes_PE = sizes_E.reshape(shards, -1)  # P: devices
    P, E = sizes_PE.shape
    room = _room(tokens, min(k, E))
    counts_P = sizes_PE.sum(1)
    begins_P = jnp.cumsum(counts_P) - counts_P
    slots_S = jnp.arange(room)
    sent_PS = begins_P[:, None] + slots_S[None]
    is_sent_PS = slots_S[None] < counts_P[:, None]
    send = jnp.where(is_sent_PS[..., None], rows_RD[jnp.minimum(sent_PS, len(rows_RD) - 1)], 0)
    rows_MD = _all_to_all(send, axes).reshape(P * room, -1)
    sizes_PE = _all_to_all(sizes_PE, axes)
    # Sort what has come from all devices by expert; empty slots last.
    ends_PE = jnp.cumsum(sizes_PE, 1)
    experts_M = jnp.sum(ends_PE[:, None, :] <= slots_S[None, :, None], -1).reshape(-1)
    order_M = jnp.argsort(experts_M)
    inverse_M = jnp.argsort(order_M)
    rows_MD = run(permute(rows_MD, order_M, inverse_M), sizes_PE.sum(0))
    rows_MD = permute(rows_MD, inverse_M, order_M).reshape(P, room, -1)
    rows_PSD = _all_to_all(rows_MD, axes)
    index_R = jnp.arange(len(rows_RD))
    device_R = jnp.sum(jnp.cumsum(counts_P)[None] <= index_R[:, None], -1)
    return rows_PSD[device_R, index_R - begins_P[device_R]], len(rows_RD) - is_sent_PS.sum()


def _room(tokens: int, choices: int) -> int:
    """Returns the number of rows that a device may send to another: all of its tokens."""
    return tokens * choices  # a token goes to each expert once at most


def _all_to_all(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.all_to_all(x, axes, 0, 0)
