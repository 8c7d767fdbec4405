"""Compares the kernels of this backend with their references: error and speed.

    python benchmarks/kernels.py --batch_size 32 --length 1024 --num_heads 12 --head_dim 64

Attention and norms run forward and backward on random inputs; the loss's softmax makes both in
one. The error is ||out - reference|| / ||reference|| over the output and all gradients, with the
reference in float32 on the same inputs; the plain XLA version in the kernel's dtype stands beside
it. Times are medians over calls, each of which waits for the device.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import pairing

from gpt_jax.config import LossKernel
from gpt_jax.kernels.attention import ATTENTION_KERNELS, kernel_obstacle
from gpt_jax.kernels.loss import LOSS_KERNELS
from gpt_jax.kernels.loss_softmax import LossOptions
from gpt_jax.kernels.norm import NORM_KERNELS
from gpt_jax.kernels.scores import ScoreOptions
from gpt_jax.model.attention import attend
from gpt_jax.model.config import DType, ModelConfig, finalize_model
from gpt_jax.model.norm import normalize

Arrays = list[jax.Array]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each kernel that runs here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch_size', type=int, default=8)
    parser.add_argument('--length', type=int, default=1024)
    parser.add_argument('--num_heads', type=int, default=12)
    parser.add_argument('--num_kv_heads', type=int, default=0, help='default: num_heads')
    parser.add_argument('--head_dim', type=int, default=64)
    parser.add_argument('--tokens', type=int, default=4096, help='of the loss')
    parser.add_argument('--vocab_size', type=int, default=50257)
    parser.add_argument('--dtype', type=DType, choices=list(DType), default=None)
    parser.add_argument('--calls', type=int, default=20)
    flags = parser.parse_args(argv)
    backend = jax.default_backend()
    dtype = flags.dtype or (DType.FLOAT32 if backend == 'cpu' else DType.BFLOAT16)
    print(f'{pairing.describe_host()}, {jax.devices()[0].device_kind}, jax {jax.__version__}')
    print(f'| kernel, {dtype} | error | error of xla | time | speed / xla |\n|---|---|---|---|---|')
    compare_attention(flags, backend, dtype)
    compare_norm(flags, backend, dtype)
    compare_loss(flags, backend, dtype)


def compare_attention(flags: argparse.Namespace, backend: str, dtype: DType) -> None:
    """A row for each attention kernel: causal, forward and backward."""
    config = ModelConfig(
        vocab_size=flags.vocab_size,
        max_seq_len=flags.length,
        num_heads=flags.num_heads,
        num_kv_heads=flags.num_kv_heads,
        head_dim=flags.head_dim,
        d_model=flags.num_heads * flags.head_dim,
        precision={'compute': dtype},
    )
    finalize_model(config)
    heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads, config.num_heads]
    shapes = [(flags.batch_size, flags.length, count, flags.head_dim) for count in heads]

    def bind(kernel: Callable[..., jax.Array]) -> Callable[..., Arrays]:
        def forward_and_backward(q, k, v, dout) -> Arrays:
            out, vjp = jax.vjp(lambda *heads: kernel(*heads, ScoreOptions()), q, k, v)
            return [out, *vjp(dout)]

        return jax.jit(forward_and_backward)

    for name, kernel in ATTENTION_KERNELS.items():
        if not kernel_obstacle(name, config, backend=backend, segments=False):
            row = f'attention, {name}, {shapes[0]}'
            _print_row(row, bind(kernel.attend), bind(attend), shapes, dtype, flags.calls)


def compare_norm(flags: argparse.Namespace, backend: str, dtype: DType) -> None:
    """A row for each kernel of LayerNorm, with the gradient of the residual stream added."""
    width = flags.num_heads * flags.head_dim
    x, vector = (flags.batch_size * flags.length, width), (width,)
    shapes = [x, vector, vector, x, x]

    def bind(kernel: Callable[..., tuple[jax.Array, jax.Array]]) -> Callable[..., Arrays]:
        def forward_and_backward(x, scale, bias, dy, dresidual) -> Arrays:
            run = functools.partial(kernel, epsilon=1e-5, centred=True)
            (y, _), vjp = jax.vjp(run, x, scale, bias)
            return [y, *vjp((dy, dresidual))]

        return jax.jit(forward_and_backward)

    for name, kernel in NORM_KERNELS.items():
        if kernel.backend == backend:
            row = f'layernorm, {name}, {x}'
            _print_row(row, bind(kernel.normalize), bind(normalize), shapes, dtype, flags.calls)


def compare_loss(flags: argparse.Namespace, backend: str, dtype: DType) -> None:
    """A row for each softmax of the loss: losses and the gradient of the logits."""
    rows = -(-flags.vocab_size // 128) * 128
    targets = jnp.asarray(np.random.default_rng(1).integers(0, flags.vocab_size, flags.tokens))
    options = LossOptions(vocab_size=flags.vocab_size)

    def bind(kernel: LossKernel) -> Callable[..., Arrays]:
        def softmax(logits: jax.Array) -> Arrays:
            wanted = jnp.float32 if LOSS_KERNELS[kernel].float32_logits else logits.dtype
            losses, gradient = LOSS_KERNELS[kernel].softmax(
                options, logits.astype(wanted), targets, jnp.ones(flags.tokens)
            )
            return [losses.nll_M, losses.log_z_M, gradient.astype(logits.dtype)]

        return jax.jit(softmax, donate_argnums=0)  # the step's logits are overwritten too

    for kernel in LOSS_KERNELS:
        obstacles = LOSS_KERNELS[kernel].obstacles(backend=backend, vocab_parts=1)
        if kernel != LossKernel.XLA and not any(obstacles.values()):
            shapes = [(flags.tokens, rows)]
            name = f'loss, {kernel}, {shapes[0]}'
            _print_row(name, bind(kernel), bind(LossKernel.XLA), shapes, dtype, flags.calls)


def _print_row(
    name: str,
    kernel: Callable[..., Arrays],
    plain: Callable[..., Arrays],
    shapes: list[tuple[int, ...]],
    dtype: DType,
    calls: int,
) -> None:
    random = np.random.default_rng()  # fresh inputs every time
    inputs = [jnp.asarray(random.standard_normal(shape, np.float32), dtype) for shape in shapes]
    with jax.default_matmul_precision('highest'):
        reference = plain(*(jnp.array(x, jnp.float32) for x in inputs))
    errors = [_error(function(*_copy(inputs)), reference) for function in (kernel, plain)]
    ours, theirs = _alternate([kernel, plain], inputs, calls)
    print(
        f'| {name} | {errors[0]:.1e} | {errors[1]:.1e} | {1e3 * statistics.median(ours):.3f} ms '
        f'| {pairing.describe_ratio([1 / s for s in ours], [1 / s for s in theirs])} |',
        flush=True,
    )


def _copy(inputs: Arrays) -> Arrays:
    return [jnp.array(x) for x in inputs]


def _error(results: Arrays, reference: Arrays) -> float:
    """The largest relative error of an array; NaN where one is not finite."""
    pairs = zip(results, reference, strict=True)
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return float(max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in wide))


def _alternate(
    functions: list[Callable[..., Any]], inputs: Arrays, calls: int
) -> list[list[float]]:
    """Seconds of each function's calls, which take turns."""
    seconds: list[list[float]] = [[] for _ in functions]
    for call in range(calls + 2):
        for function, times in zip(functions, seconds, strict=True):
            fresh = jax.block_until_ready(_copy(inputs))
            began = time.perf_counter()
            jax.block_until_ready(function(*fresh))
            if call > 1:
                times.append(time.perf_counter() - began)
    return seconds


if __name__ == '__main__':
    main()
