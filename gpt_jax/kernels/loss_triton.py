"""The losses and gradients of `loss_softmax` in two passes: a Pallas kernel for NVIDIA GPUs.

One program per token. The first pass computes the maximum and the sum of the softmax online
(Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867). The second overwrites the logits
with their gradient. XLA makes three passes and allocates a second array.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from gpt_jax.kernels.loss_softmax import LossOptions, TokenLosses

BLOCK = 2048  # logits that a program holds at once; a power of 2
WARPS = 4
LOWEST = -1e30  # below every logit, and exp(LOWEST - maximum) is an exact 0


def softmax_triton(
    options: LossOptions,
    raw_MV: Float[Array, 'M V'],
    targets_M: Int[Array, 'M'],
    weights_M: Float[Array, 'M'],
    *,
    vocab_axes: tuple[str, ...] = (),
    interpret: bool = False,
) -> tuple[TokenLosses, Float[Array, 'M V']]:
    """Computes `softmax_xla` with gradients in the dtype of the logits; overwrites the logits.

    Sums are in float32. `interpret` runs the kernel in Python on any backend, for tests.

    Raises:
        ValueError: the vocabulary is sharded (`vocab_axes` is not empty).
    """
    if vocab_axes:
        raise ValueError('the kernel sums over a whole vocabulary')
    dlogits_MV, *losses = _call_kernel(options, interpret, raw_MV, targets_M, weights_M)
    return TokenLosses(*losses), dlogits_MV


def _call_kernel(options, interpret, raw_MV, targets_M, weights_M):
    M, V = raw_MV.shape
    block = min(BLOCK, pl.next_power_of_2(V))
    # The row is rounded up to whole blocks; entries beyond the logits are masked.
    row = pl.BlockSpec((None, pl.cdiv(V, block) * block), lambda m: (m, 0))
    token = pl.BlockSpec((1,), lambda m: (m,))
    number = jax.ShapeDtypeStruct((M,), jnp.float32)
    call = pl.pallas_call(
        functools.partial(_kernel, options, block, V),
        grid=(M,),
        in_specs=[row, token, token],
        out_specs=[row, token, token, token],
        out_shape=[jax.ShapeDtypeStruct((M, V), raw_MV.dtype), number, number, number],
        input_output_aliases={0: 0},
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=2),
        interpret=interpret,
        name='softmax_and_gradient',
    )
    return tuple(call(raw_MV, targets_M, weights_M))


def _kernel(
    options, block, V, raw_ref, target_ref, weight_ref, dlogits_ref, nll_ref, log_z_ref, correct_ref
):
    """Processes one token. `V` counts all rows of the table, `options.vocab_size` the real ones."""
    target, weight, cap = target_ref[0], weight_ref[0], options.soft_cap

    def logits(i):
        """Returns the vocabulary entries of block i and their capped logits."""
        entries = i * block + jnp.arange(block)
        x = plgpu.load(
            raw_ref.at[pl.ds(i * block, block)],
            mask=entries < options.vocab_size,
            other=LOWEST,
        ).astype(jnp.float32)
        if cap:
            x = jnp.where(entries < options.vocab_size, cap * jnp.tanh(x / cap), LOWEST)
        return entries, x

    def accumulate(i, carry):
        maximum, total, target_logit = carry
        entries, x = logits(i)
        new = jnp.maximum(maximum, jnp.max(x))
        total = total * jnp.exp(maximum - new) + jnp.sum(jnp.exp(x - new))
        return new, total, target_logit + jnp.sum(jnp.where(entries == target, x, 0.0))

    start = (jnp.float32(LOWEST), jnp.float32(0), jnp.float32(0))
    filled = pl.cdiv(options.vocab_size, block)
    maximum, total, target_logit = jax.lax.fori_loop(0, filled, accumulate, start)
    log_z = jnp.log(total) + maximum
    nll_ref[0] = log_z - target_logit
    log_z_ref[0] = log_z
    correct_ref[0] = (target_logit >= maximum).astype(jnp.float32)
    scale = (1 + 2 * options.z_loss * log_z) / total * weight

    def write_gradient(i, _):
        entries, x = logits(i)
        gradient = jnp.exp(x - maximum) * scale - jnp.where(entries == target, weight, 0.0)
        if cap:
            inside = entries < options.vocab_size
            gradient *= jnp.where(inside, 1 - (x / cap) ** 2, 0.0)
        plgpu.store(
            dlogits_ref.at[pl.ds(i * block, block)],
            gradient.astype(dlogits_ref.dtype),
            mask=entries < V,
        )
        return 0

    jax.lax.fori_loop(0, pl.cdiv(V, block), write_gradient, 0)


def triton_obstacles(*, backend: str, vocab_parts: int) -> dict[str, bool]:
    """Returns the reasons why the kernel cannot run, and whether each holds."""
    return {
        f'the backend is {backend}, not gpu': backend != 'gpu',
        f'the vocabulary is split over {vocab_parts} devices': vocab_parts > 1,
    }
