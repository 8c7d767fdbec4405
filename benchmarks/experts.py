"""Compares the products of a mixture of experts with a dense product of equal FLOPs.

    python benchmarks/experts.py --rows 4096 --inputs 256 --outputs 1024 --experts 16

Each row of x goes to a random expert. The dense product multiplies all rows by one matrix. Times
are medians over calls, each of which waits for the device; the versions take turns.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import pairing

from gpt_jax.kernels.choice import PLAIN
from gpt_jax.kernels.experts import EXPERT_KERNELS, find_expert_kernel
from gpt_jax.kernels.matmul_cpu import matmul
from gpt_jax.model.config import DType
from gpt_jax.parallel.compiler_options import compiler_options

DENSE = 'dense'


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each version, forward and with gradients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=4096)
    parser.add_argument('--inputs', type=int, default=256)
    parser.add_argument('--outputs', type=int, default=1024)
    parser.add_argument('--experts', type=int, default=16)
    parser.add_argument(
        '--concentration',
        type=float,
        default=0,
        help='of the Dirichlet distribution of the groups; smaller: less balanced; 0: uniform',
    )
    parser.add_argument('--dtype', type=DType, choices=list(DType), default=DType.FLOAT32)
    parser.add_argument('--versions', nargs='*', default=[PLAIN, *EXPERT_KERNELS])
    parser.add_argument('--calls', type=int, default=20)
    flags = parser.parse_args(argv)
    random = np.random.default_rng(0)
    shares = [1 / flags.experts] * flags.experts
    if flags.concentration:
        shares = random.dirichlet([flags.concentration] * flags.experts)
    sizes_E = random.multinomial(flags.rows, shares)
    x_TD, kernel_EDF, dy_TF = (
        jnp.asarray(random.standard_normal(shape, np.float32), flags.dtype)
        for shape in (
            (flags.rows, flags.inputs),
            (flags.experts, flags.inputs, flags.outputs),
            (flags.rows, flags.outputs),
        )
    )
    print(f'{pairing.describe_host()}, {jax.devices()[0].device_kind}, jax {jax.__version__}')
    print(f'groups of {sizes_E.min()} to {sizes_E.max()} rows')
    sizes_E = jnp.asarray(sizes_E, jnp.int32)
    print(f'| {kernel_EDF.shape}, {flags.rows} rows, {flags.dtype} | time | time / dense |')
    print('|---|---|---|')
    versions = {DENSE: _dense} | {name: find_expert_kernel(name) for name in flags.versions}
    for part, bind in (('forward', _forward), ('forward and backward', _both)):
        calls = {
            name: functools.partial(bind(multiply), x_TD, kernel_EDF, sizes_E, dy_TF)
            for name, multiply in versions.items()
        }
        seconds = _alternate(calls, flags.calls)
        for name, ours in seconds.items():
            print(
                f'| {part}, {name} | {1e3 * statistics.median(ours):.1f} ms '
                f'| {pairing.describe_ratio(ours, seconds[DENSE])} |',
                flush=True,
            )


def _dense(x_TD: jax.Array, kernel_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return matmul(x_TD, kernel_EDF[0])


def _forward(multiply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return _compile(lambda x, kernel, sizes, dy: multiply(x, kernel, sizes))


def _both(multiply: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    def run(x, kernel, sizes, dy):
        # The dense product's gradient has one matrix, not one per expert.
        kernel = kernel[:1] if multiply is _dense else kernel
        y, backward = jax.vjp(lambda x, kernel: multiply(x, kernel, sizes), x, kernel)
        return y, *backward(dy)

    return _compile(run)


def _compile(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    options = compiler_options(jax.default_backend(), deterministic=False)
    return jax.jit(function, compiler_options=options)


def _alternate(calls: dict[str, Callable[[], jax.Array]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each version's calls, which take turns."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for names in pairing.turns(list(calls), rounds):
        for name in names:
            began = time.perf_counter()
            jax.block_until_ready(calls[name]())
            seconds[name].append(time.perf_counter() - began)
    return seconds


if __name__ == '__main__':
    main()
