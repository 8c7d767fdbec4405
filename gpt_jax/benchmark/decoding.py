"""How fast a model generates here, and how near that is to what the memory allows.

A token of a batch needs all weights once and the keys and values of all rows: reading them is the
floor of its time.
"""

import concurrent.futures
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.decode import Decoder
from gpt_jax.model.config import ModelConfig

READ_BYTES = 2**28
READS = 8  # in one call, of a device that takes calls slowly


def read_bandwidth(repeats: int = 5) -> float:
    """Bytes per second that the default device reads: the best of some runs over one array.

    XLA reduces on one thread of a CPU; there NumPy reads on all of them. On a CPU a call reads
    once: the shorter it is, the more likely one of them is not interrupted by other processes.
    """
    on_cpu = jax.default_backend() == 'cpu'
    read = _read_on_threads() if on_cpu else _read_on_device()
    read()  # compile, and touch the memory
    reads, calls = (1, READS * repeats) if on_cpu else (READS, repeats)
    return READ_BYTES * reads / min(_seconds(read) for _ in range(calls))


def _read_on_device() -> Callable[[], Any]:
    @jax.jit
    def read(x: jax.Array) -> jax.Array:
        # Each maximum depends on the one before, so that none is left out.
        return jax.lax.fori_loop(0, READS, lambda _, largest: jnp.max(x - largest), x[0])

    x = jnp.zeros(READ_BYTES // 4, jnp.float32)
    return lambda: jax.block_until_ready(read(x))


def _read_on_threads() -> Callable[[], Any]:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    matrix = np.ones((READ_BYTES // 4 // 1024, 1024), np.float32)
    parts = np.array_split(matrix, threads)
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    def read_part(part: np.ndarray) -> None:
        # BLAS reads several rows at a time, which is a fifth faster than one stream (a maximum, a
        # sum), and holds no lock of the interpreter.
        np.ones(len(part), np.float32) @ part

    return lambda: list(pool.map(read_part, parts))


def measure_decoding(
    config: ModelConfig,
    params: Any,
    *,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
) -> list[dict[str, float]]:
    """Greedy generation by the real Decoder; one row of results a batch size.

    Args:
      config: of a finalized model.
      params: its weights, in the stored layout.
      batch_sizes: texts at a time.
      prompt_tokens: length of each prompt, of random ids.
      new_tokens: drawn after each, at least 2.
      repeats: of each measurement; medians are returned, compilation is outside of them.

    Returns:
      Dicts of `batch_size`, `compile_seconds` (with the first run), `prefill_tokens_per_second`,
      `decode_tokens_per_second`, `ms_per_token` (of one token of all rows), `floor_ms_per_token`
      and `fraction_of_floor` (1: as fast as the memory).

    Raises:
        UserError: the new tokens are too few to be timed.
    """
    if new_tokens < 2:
        raise ValueError(f'new_tokens={new_tokens} must be at least 2: the first is the prefill')
    # The end-of-text id is none of the model's: no text ends early.
    decoder = Decoder(
        freeze(config), params, vocab_size=config.vocab_size, eot_id=config.vocab_size
    )
    bandwidth = read_bandwidth()
    rows = []
    for batch_size in batch_sizes:
        random = np.random.default_rng(0)
        prompts = random.integers(0, config.vocab_size, (batch_size, prompt_tokens)).tolist()

        def generate(count: int, prompts: list[list[int]] = prompts) -> float:
            sampling = SampleConfig(temperature=0.0, max_new_tokens=count)
            return _seconds(lambda: list(decoder.generate(prompts, sampling)))

        compile_seconds = generate(new_tokens) + generate(1)
        first = [generate(1) for _ in range(repeats)]
        whole = [generate(new_tokens) for _ in range(repeats)]
        prefill, total = statistics.median(first), statistics.median(whole)
        token = (total - prefill) / (new_tokens - 1)
        if token <= 0:
            raise UserError(
                f'--decode_tokens={new_tokens} is too few: {new_tokens} tokens took no longer than '
                f'the first alone; raise it'
            )
        floor = _bytes_per_token(decoder, batch_size, prompt_tokens + new_tokens / 2) / bandwidth
        rows.append(
            {
                'batch_size': batch_size,
                'compile_seconds': compile_seconds,
                'prefill_tokens_per_second': batch_size * prompt_tokens / prefill,
                'decode_tokens_per_second': batch_size / token,
                'ms_per_token': 1e3 * token,
                'floor_ms_per_token': 1e3 * floor,
                'fraction_of_floor': floor / token,
            }
        )
    return rows


def _bytes_per_token(decoder: Decoder, batch_size: int, length: float) -> float:
    """What drawing one token a row must read: weights, and the cache of `length` tokens a row."""
    c, params = decoder.config, decoder.params
    matrices = {name: leaf for name, leaf in params.items() if name != 'position'}
    if not c.tie_embeddings:
        del matrices['embedding']  # of which single rows are read, as of the positions
    leaves = jax.tree.leaves(matrices)
    itemsize = params['embedding']['table'].dtype.itemsize
    cache = 2 * c.num_layers * c.num_kv_heads * c.head_dim * itemsize * length * batch_size
    return sum(leaf.nbytes for leaf in leaves) + cache


def _seconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
