"""Compares generation with transformers' on GPT-2 124M with random weights, greedy.

    python benchmarks/generation.py [--peer_python /path/with/torch+transformers/bin/python]

Each measurement is a process of its own, ours and theirs in alternation, so that other work on a
shared machine meets both alike; a round gives one ratio a batch size. Prints the machine, medians
of tokens/s, and the median ratio with its range. On a GPU add
`--batch_sizes 1 8 64 --dtype bfloat16 --peer transformers_static`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pairing

PEERS = ('transformers', 'transformers_static')


def measure_ours(flags: argparse.Namespace) -> dict[int, float]:
    """Tokens/s by batch size, of this project's Decoder."""
    sys.path.insert(0, pairing.ROOT)
    import flax.linen as nn
    import jax
    import numpy as np

    from gpt_jax.config_tree import freeze
    from gpt_jax.inference.config import SampleConfig
    from gpt_jax.inference.decode import Decoder
    from gpt_jax.model.config import DType, ModelConfig, PrecisionConfig, finalize_model
    from gpt_jax.model.gpt import init_params
    from gpt_jax.model.presets import PRESETS

    config = ModelConfig(
        **PRESETS['gpt2_124m'], precision=PrecisionConfig(compute=DType(flags.dtype))
    )
    finalize_model(config)
    config = freeze(config)
    params = jax.jit(lambda key: nn.unbox(init_params(config, key)))(jax.random.key(0))
    decoder = Decoder(config, params, vocab_size=config.vocab_size, eot_id=config.vocab_size)
    sampling = SampleConfig(temperature=0.0, max_new_tokens=flags.new_tokens)

    def generate(batch_size: int) -> None:
        shape = (batch_size, flags.prompt_tokens)
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, shape).tolist()
        count = sum(len(piece[0]) for piece in decoder.generate(prompts, sampling))
        assert count == flags.new_tokens

    return _measure(generate, flags)


def measure_transformers(flags: argparse.Namespace) -> dict[int, float]:
    """Tokens/s by batch size, of `transformers.generate` with its dynamic or static cache."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(pairing.usable_cores())
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = GPT2LMHeadModel(GPT2Config()).eval().to(device, getattr(torch, flags.dtype))
    static = {'cache_implementation': 'static'} if flags.worker == 'transformers_static' else {}

    def generate(batch_size: int) -> None:
        prompts = torch.randint(0, 50257, (batch_size, flags.prompt_tokens), device=device)
        with torch.inference_mode():
            tokens = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                max_new_tokens=flags.new_tokens,
                min_new_tokens=flags.new_tokens,
                pad_token_id=50256,
                **static,
            )
        tokens.cpu()
        assert tokens.shape[1] == flags.prompt_tokens + flags.new_tokens

    return _measure(generate, flags)


WORKERS = {'ours': measure_ours} | dict.fromkeys(PEERS, measure_transformers)


def _measure(generate: Callable[[int], None], flags: argparse.Namespace) -> dict[int, float]:
    """New tokens/s by batch size: the median of some calls after one that compiles."""
    speeds = {}
    for batch_size in flags.batch_sizes:
        generate(batch_size)
        seconds = []
        for _ in range(flags.calls):
            begin = time.perf_counter()
            generate(batch_size)
            seconds.append(time.perf_counter() - begin)
        speeds[batch_size] = batch_size * flags.new_tokens / statistics.median(seconds)
    return speeds


def run_worker(name: str, flags: argparse.Namespace) -> dict[int, float]:
    """Measures in a fresh process."""
    python = sys.executable if name == 'ours' else flags.peer_python
    command = [python, os.path.abspath(__file__), *sys.argv[1:], '--worker', name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    speeds = pairing.read_result(iter(output.splitlines()))
    return {int(size): speed for size, speed in speeds.items()}


def main() -> None:
    """Runs the rounds and prints one line a batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--peer_python', default=sys.executable, help='has torch, transformers')
    parser.add_argument('--peer', choices=PEERS, default=PEERS[0])
    parser.add_argument('--batch_sizes', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--prompt_tokens', type=int, default=32)
    parser.add_argument('--new_tokens', type=int, default=128)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--calls', type=int, default=3, help='timed calls in each process')
    parser.add_argument('--worker', choices=WORKERS, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        pairing.print_result(WORKERS[flags.worker](flags))
        return
    print(f'{pairing.describe_host()}, {flags.dtype}')
    speeds: dict[str, list[dict[int, float]]] = {'ours': [], flags.peer: []}
    for index, order in enumerate(pairing.turns(list(speeds), flags.rounds)):
        for name in order:
            speeds[name].append(run_worker(name, flags))
        print(
            f'round {index + 1}: { ({name: runs[-1] for name, runs in speeds.items()}) }',
            flush=True,
        )
    for size in flags.batch_sizes:
        ours, theirs = ([run[size] for run in runs] for runs in speeds.values())
        print(
            f'batch {size}: ours {statistics.median(ours):.1f} tokens/s, {flags.peer} '
            f'{statistics.median(theirs):.1f}, {pairing.describe_ratio(ours, theirs)}'
        )


if __name__ == '__main__':
    main()
