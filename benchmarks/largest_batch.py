"""The most sequences that one step of each GPT-2 size can hold on an H100 of 80 GB.

    python benchmarks/largest_batch.py --sizes 124m --remat none

XLA compiles the step for a described GPU, which need not be here (requirements-cuda.txt). What a
step holds grows evenly with its sequences: two compilations foretell the largest number, two more
confirm that it fits and that one more does not. cuDNN's attention cannot be compiled without a
GPU: this is the step with XLA's, which keeps the scores, so a real one holds more. What
train/memory.py estimates for that stands beside it. XLA_CLIENT_MEM_FRACTION is the share of the
80 GB that a run takes. `config.train.grad_accumulation` splits larger batches.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax

from configs.base import pretraining
from gpt_jax.compile_check.check import build, check_program
from gpt_jax.compile_check.topology import describe_devices
from gpt_jax.config import RunConfig, finalize
from gpt_jax.model.config import AttentionKernel, Remat
from gpt_jax.telemetry.chips import GIB
from gpt_jax.train.memory import estimate_memory, memory_limit

TOPOLOGY = 'h100:1'
SIZES = {'124m': 'gpt2_124m', '355m': 'gpt2_355m', '774m': 'gpt2_774m', '1558m': 'gpt2_1558m'}
POLICIES = (Remat.NONE, Remat.DOTS_AND_ATTENTION)


def main() -> None:
    """Prints a row for each size and policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', nargs='+', choices=SIZES, default=list(SIZES))
    parser.add_argument('--remat', nargs='+', type=Remat, choices=list(Remat), default=POLICIES)
    arguments = parser.parse_args()
    jax.config.update('jax_platforms', 'cpu')  # a GPU that is here stays untouched
    limit = memory_limit(describe_devices(TOPOLOGY)[0])
    print(f'sequences of 1,024 tokens in {limit / GIB:.0f} GiB')
    print('| size | remat | compiled, xla attention | by formula, cudnn attention |')
    print('|---|---|---|---|')
    for size in arguments.sizes:
        for remat in arguments.remat:
            compiled = functools.cache(functools.partial(compiled_bytes, size, remat))
            formula = functools.partial(estimated_bytes, size, remat)
            largest = confirm(compiled, foretell(compiled, limit), limit)
            held = f' ({compiled(largest) / GIB:.1f} GiB)' if largest else ''
            estimate = confirm(formula, foretell(formula, limit), limit)
            print(f'| {size} | {remat} | {largest}{held} | {estimate} |', flush=True)


def run_config(size: str, remat: Remat, sequences: int, kernel: AttentionKernel) -> RunConfig:
    """One step of the size's config on one device, without micro-batches."""
    config = pretraining(SIZES[size])
    config.model.execution.remat = remat
    config.model.execution.attention_kernel = kernel
    config.train.batch_size = config.eval.batch_size = sequences
    config.train.grad_accumulation = 1
    return finalize(config, vocab_size=config.model.vocab_size)


def compiled_bytes(size: str, remat: Remat, sequences: int) -> float:
    """Returns the memory of a step with XLA's attention, by its compiler."""
    config = run_config(size, remat, sequences, AttentionKernel.XLA)
    check = check_program(build(config, describe_devices(TOPOLOGY)), config)
    return float('inf') if check.peak_bytes is None else check.peak_bytes


def estimated_bytes(size: str, remat: Remat, sequences: int) -> float:
    """Returns the memory of a step with cuDNN's attention, by formula."""
    config = run_config(size, remat, sequences, AttentionKernel.CUDNN)
    return estimate_memory(build(config, describe_devices(TOPOLOGY)), config).total


def foretell(size_of: Callable[[int], float], limit: float) -> int:
    """The largest number of sequences within `limit` bytes, from the line through two of them."""
    few, more = 2, 6
    slope = (size_of(more) - size_of(few)) / (more - few)
    return max(1, int(few + (limit - size_of(few)) / slope))


def confirm(size_of: Callable[[int], float], guess: int, limit: float) -> int:
    """The largest number that fits, from a guess near it; 0 if one does not."""
    while guess and size_of(guess) > limit:
        guess -= 1
    while size_of(guess + 1) <= limit:
        guess += 1
    return guess


if __name__ == '__main__':
    main()
