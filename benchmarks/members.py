"""Compares k members of one program with k runs one after another.

    python benchmarks/members.py --config configs/shakespeare_char.py:cpu --members 2 4 8
    XLA_FLAGS=--xla_force_host_platform_device_count=2 python benchmarks/members.py

Both train the same config on random tokens, in turns, and each compiles its step once: runs that
differ in numbers only share it. A factor above 1 says that members are faster. Beside the factor of
the steps stand that of their processor time, which other work on the machine disturbs less, and
that of a whole training of `--num_steps`, compilation included. Times and factors are medians over
rounds.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np
import pairing

from gpt_jax.config import RunConfig, finalize, load_config
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.train.member_program import MemberProgram
from gpt_jax.train.program import make_program

VOCABULARY = 65


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each number of members."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='configs/shakespeare_char.py:cpu')
    parser.add_argument('--layers', type=int, default=0, help='0: those of the config')
    parser.add_argument('--d_model', type=int, default=0, help='0: that of the config')
    parser.add_argument('--members', type=int, nargs='+', default=[2, 4, 8])
    parser.add_argument('--num_steps', type=int, default=0, help="0: the config's")
    parser.add_argument('--vectorized', type=int, choices=[0, 1], help='default: by backend')
    parser.add_argument('--rounds', type=int, default=7)
    flags = parser.parse_args(argv)
    config = load_config(flags.config)
    config.model.num_layers = flags.layers or config.model.num_layers
    config.model.d_model = flags.d_model or config.model.d_model
    config.train.num_steps = flags.num_steps or config.train.num_steps
    config = finalize(config, vocab_size=VOCABULARY)
    devices = f'{len(jax.devices())} x {jax.devices()[0].device_kind}'
    print(f'{pairing.describe_host()}, {devices}, jax {jax.__version__}')
    shape = f'{config.model.num_layers} layers of {config.model.d_model}'
    print(f'{shape}, {config.train.batch_size} x {config.model.max_seq_len} tokens per step')
    print(
        '| members | compile one | compile all | step of one | step of all | factor | whole run |'
    )
    print('|---|---|---|---|---|---|---|')
    for members in flags.members:
        row = compare(config, members, rounds=flags.rounds, vectorized=flags.vectorized)
        print(row, flush=True)


def compare(config: RunConfig, members: int, *, rounds: int, vectorized: int | None = None) -> str:
    """Returns the row of one number of members."""
    program = make_program(config, make_mesh(MeshConfig(data=1)))
    together = MemberProgram(program, [program.numbers] * members, vectorized=vectorized)
    generator = np.random.default_rng(0)
    shape = (config.train.batch_size, config.model.max_seq_len + 1)
    call = [
        {'tokens': generator.integers(0, VOCABULARY, shape).astype(np.int32)}
        for _ in range(program.steps_per_call)
    ]
    states = [program.init(jax.random.key(seed)) for seed in range(members)]
    one, many = program.init(jax.random.key(0)), together.stack(states)
    del states

    def advance_one() -> None:
        nonlocal one
        one, _ = program.advance(one, call)
        jax.block_until_ready(one)

    def advance_all() -> None:
        nonlocal many
        many, _ = together.advance(many, [call])
        jax.block_until_ready(many)

    calls = {'one': advance_one, 'all': advance_all}
    first = {name: _seconds(advance)[0] for name, advance in calls.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for names in pairing.turns(list(calls), rounds):
        for name in names:
            times[name].append(_seconds(calls[name]))
    step = {
        name: statistics.median(seconds for seconds, _ in each) / len(call)
        for name, each in times.items()
    }
    compilation = {name: first[name] - len(call) * step[name] for name in calls}
    steps = config.train.num_steps
    alone = compilation['one'] + members * steps * step['one']
    whole = alone / (compilation['all'] + steps * step['all'])
    pairs = list(zip(times['one'], times['all'], strict=True))
    factor, work = (
        statistics.median(members * one[i] / all[i] for one, all in pairs) for i in range(2)
    )
    return (
        f'| {members} | {compilation["one"]:.1f} s | {compilation["all"]:.1f} s '
        f'| {1e3 * step["one"]:.2f} ms | {1e3 * step["all"]:.2f} ms | {factor:.2f} | {work:.2f} '
        f'| {whole:.2f} |'
    )


def _seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds on the clock and those of the processors."""
    began, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - began, time.process_time() - busy


if __name__ == '__main__':
    main()
