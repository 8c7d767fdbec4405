"""Compares generation with transformers' or llama.cpp's, with random weights, greedy.

    python benchmarks/generation.py [--peer_python /path/with/torch+transformers/bin/python]
    python benchmarks/generation.py --model llama_135m --peer llama_cpp --peer_python PYTHON

Each measurement is a process of its own, ours and theirs in alternation, so that other work on a
shared machine meets both alike; a round gives one ratio a batch size. Prints the machine, medians
of tokens/s of the prompt and of the tokens after it, and the median ratio with its range; the peak
memory of both. On a GPU add `--batch_sizes 1 8 64 --dtype bfloat16 --peer transformers_static`.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pairing

PEERS = ('transformers', 'transformers_static', 'llama_cpp')
MODELS = {  # sizes in the words of transformers
    'gpt2_124m': {},  # its defaults
    'llama_135m': dict(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
}


def make_model(name: str, dtype: str) -> tuple[Any, Any]:
    """Returns a config of ours with random weights."""
    sys.path.insert(0, pairing.ROOT)
    import flax.linen as nn
    import jax

    from gpt_jax.config_tree import freeze
    from gpt_jax.model.config import DType, ModelConfig, PrecisionConfig, finalize_model
    from gpt_jax.model.gpt import init_params
    from gpt_jax.model.presets import PRESETS

    if name == 'gpt2_124m':
        fields = PRESETS[name]
    else:
        sizes = MODELS[name]
        fields = PRESETS['llama3_1b'] | dict(
            vocab_size=sizes['vocab_size'],
            d_model=sizes['hidden_size'],
            d_ff=sizes['intermediate_size'],
            num_layers=sizes['num_hidden_layers'],
            num_heads=sizes['num_attention_heads'],
            num_kv_heads=sizes['num_key_value_heads'],
            max_seq_len=sizes['max_position_embeddings'],
            tie_embeddings=True,
        )
    config = ModelConfig(**fields, precision=PrecisionConfig(compute=DType(dtype)))
    finalize_model(config)
    config = freeze(config)
    return config, jax.jit(lambda key: nn.unbox(init_params(config, key)))(jax.random.key(0))


def measure_ours(flags: argparse.Namespace) -> dict[str, Any]:
    """Our Decoder."""
    config, params = make_model(flags.model, flags.dtype)
    import numpy as np

    from gpt_jax.inference.config import SampleConfig, WeightType
    from gpt_jax.inference.decode import Decoder

    decoder = Decoder(
        config,
        params,
        vocab_size=config.vocab_size,
        eot_id=config.vocab_size,
        weight_dtype=WeightType(flags.weight_dtype),
        consume=True,
    )

    def generate(batch_size: int, new_tokens: int) -> None:
        sampling = SampleConfig(temperature=0.0, max_new_tokens=new_tokens)
        shape = (batch_size, flags.prompt_tokens)
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, shape).tolist()
        count = sum(len(piece[0]) for piece in decoder.generate(prompts, sampling))
        assert count == new_tokens

    return _measure(generate, flags)


def measure_transformers(flags: argparse.Namespace) -> dict[str, Any]:
    """`transformers.generate` with its dynamic or static cache."""
    import torch
    import transformers

    torch.set_num_threads(pairing.usable_cores())
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    family = 'GPT2' if flags.model == 'gpt2_124m' else 'Llama'
    config = getattr(transformers, f'{family}Config')(**MODELS[flags.model])
    model = getattr(transformers, 'GPT2LMHeadModel' if family == 'GPT2' else 'LlamaForCausalLM')
    model = model(config).eval().to(device, getattr(torch, flags.dtype))
    static = {'cache_implementation': 'static'} if flags.worker == 'transformers_static' else {}

    def generate(batch_size: int, new_tokens: int) -> None:
        prompts = torch.randint(
            0, config.vocab_size, (batch_size, flags.prompt_tokens), device=device
        )
        with torch.inference_mode():
            tokens = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                pad_token_id=0,
                eos_token_id=None,
                **static,
            )
        tokens.cpu()
        assert tokens.shape[1] == flags.prompt_tokens + new_tokens

    return _measure(generate, flags)


def measure_llama_cpp(flags: argparse.Namespace) -> dict[str, Any]:
    """llama.cpp, by llama-cpp-python, on `flags.gguf`."""
    import numpy as np
    from llama_cpp import Llama

    threads = pairing.usable_cores()
    model = Llama(
        model_path=flags.gguf,
        n_threads=threads,
        n_threads_batch=threads,
        n_ctx=flags.prompt_tokens + flags.new_tokens,
        n_batch=512,
        verbose=False,
    )
    prompt = np.random.default_rng(0).integers(0, 256, flags.prompt_tokens).tolist()

    def generate(batch_size: int, new_tokens: int) -> None:
        assert batch_size == 1
        model.reset()
        model.eval(prompt)
        for _ in range(new_tokens - 1):
            model.eval([model.sample(temp=0.0)])
        model.sample(temp=0.0)

    return _measure(generate, flags)


WORKERS = {'ours': measure_ours, 'llama_cpp': measure_llama_cpp} | dict.fromkeys(
    PEERS[:2], measure_transformers
)


def _measure(generate: Callable[[int, int], None], flags: argparse.Namespace) -> dict[str, Any]:
    """Tokens/s by batch size, medians of calls after one that compiles, and the peak memory."""

    def seconds(*args: int) -> float:
        generate(*args)
        times = []
        for _ in range(flags.calls):
            begin = time.perf_counter()
            generate(*args)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    speeds = {}
    for size in flags.batch_sizes:
        prompt, whole = seconds(size, 1), seconds(size, flags.new_tokens)
        speeds[size] = {
            'prompt': size * flags.prompt_tokens / prompt,
            'decode': size * (flags.new_tokens - 1) / (whole - prompt),
        }
    status = pathlib.Path('/proc/self/status').read_text()  # getrusage counts the parent, too
    peak = int(status.split('VmHWM:')[1].split()[0]) * 1024 / 1e6
    return {'speeds': speeds, 'peak_mb': peak}


def write_gguf(flags: argparse.Namespace, folder: pathlib.Path) -> str:
    """Writes random weights for llama.cpp; returns the file."""
    config, params = make_model(flags.model, 'float32')
    from gpt_jax.tokenizer.byte import ByteTokenizer
    from gpt_jax.weights.gguf_export import FILE, export_gguf

    export_gguf(folder, config, params, ByteTokenizer(), dtype=flags.peer_dtype)
    return str(folder / FILE)


def run_worker(name: str, flags: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    """Measures in a fresh process."""
    python = sys.executable if name == 'ours' else flags.peer_python
    command = [python, os.path.abspath(__file__), *sys.argv[1:], '--worker', name, *more]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return pairing.read_result(iter(output.splitlines()))


def main() -> None:
    """Runs the rounds and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--peer_python', default=sys.executable, help="has the peer's packages")
    parser.add_argument('--peer', choices=PEERS, default=PEERS[0])
    parser.add_argument('--model', choices=MODELS, default='gpt2_124m')
    parser.add_argument('--batch_sizes', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--prompt_tokens', type=int, default=32)
    parser.add_argument('--new_tokens', type=int, default=128)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--weight_dtype', choices=('compute', 'int8'), default='compute')
    parser.add_argument(
        '--peer_dtype',
        choices=('float32', 'float16', 'q8_0'),
        default='float32',
        help="of llama.cpp's weights",
    )
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--calls', type=int, default=3, help='timed calls in each process')
    parser.add_argument('--worker', choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument('--gguf', help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.peer == 'llama_cpp':
        flags.batch_sizes = [1]
    if flags.worker:
        pairing.print_result(WORKERS[flags.worker](flags))
        return
    print(
        f'{pairing.describe_host()}, {flags.model}, {flags.dtype}, weights {flags.weight_dtype}, '
        f'{flags.peer}, prompt of {flags.prompt_tokens} tokens'
    )
    results: dict[str, list[dict[str, Any]]] = {'ours': [], flags.peer: []}
    with tempfile.TemporaryDirectory() as folder:
        more = []
        if flags.peer == 'llama_cpp':
            more = ['--gguf', write_gguf(flags, pathlib.Path(folder))]
        for index, order in enumerate(pairing.turns(list(results), flags.rounds)):
            for name in order:
                results[name].append(run_worker(name, flags, more))
            print(f'round {index + 1}: { ({name: runs[-1] for name, runs in results.items()}) }')
    for size in flags.batch_sizes:
        for part in ('decode', 'prompt'):
            ours, theirs = (
                [run['speeds'][str(size)][part] for run in runs] for runs in results.values()
            )
            print(
                f'batch {size}, {part}: ours {statistics.median(ours):.1f} tokens/s, {flags.peer} '
                f'{statistics.median(theirs):.1f}, {pairing.describe_ratio(ours, theirs)}'
            )
    ours, theirs = ([run['peak_mb'] for run in runs] for runs in results.values())
    print(
        f'peak memory: ours {statistics.median(ours):.0f} MB, {flags.peer} '
        f'{statistics.median(theirs):.0f} MB'
    )


if __name__ == '__main__':
    main()
