"""The speed of generation, compared with the limit set by the memory bandwidth.

Each decoding step reads all weights once, and the keys and values of all rows. The time to read
them is the floor.
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
from gpt_jax.inference.config import SampleConfig, WeightType
from gpt_jax.inference.decode import Decoder
from gpt_jax.model.attention import GroupedQuery
from gpt_jax.model.cache import cache_bytes_per_token, grouped_query_cache_bytes_per_token
from gpt_jax.model.config import ModelConfig

READ_BYTES = 2**28
READS = 8  # per call on accelerators, where a call is slow to start


def read_bandwidth(repeats: int = 5) -> float:
    """Measures the read bandwidth of the default device in bytes per second, the best of some runs.

    On a CPU, XLA reduces on one thread, so NumPy reads on all of them instead. There a call reads
    once: the shorter the call, the more likely it is not interrupted by other processes.
    """
    on_cpu = jax.default_backend() == 'cpu'
    read = _read_on_threads() if on_cpu else _read_on_device()
    read()  # warm-up: compile, and touch the memory
    reads, calls = (1, READS * repeats) if on_cpu else (READS, repeats)
    return READ_BYTES * reads / min(_seconds(read) for _ in range(calls))


def _read_on_device() -> Callable[[], Any]:
    @jax.jit
    def read(x: jax.Array) -> jax.Array:
        # Each maximum depends on the previous one, so that XLA removes none.
        return jax.lax.fori_loop(0, READS, lambda _, largest: jnp.max(x - largest), x[0])

    x = jnp.zeros(READ_BYTES // 4, jnp.float32)
    return lambda: jax.block_until_ready(read(x))


def _read_on_threads() -> Callable[[], Any]:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    matrix = np.ones((READ_BYTES // 4 // 1024, 1024), np.float32)
    parts = np.array_split(matrix, threads)
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    vector = np.ones(matrix.shape[1], np.float32)

    def read_part(part: np.ndarray) -> None:
        # The fastest of the ways that were tried (a maximum, a sum, vector @ part), and what a
        # decoder does with its weights. BLAS releases the GIL.
        part @ vector

    return lambda: list(pool.map(read_part, parts))


def measure_decoding(
    config: ModelConfig,
    params: Any,
    *,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    weight_dtype: WeightType = WeightType.COMPUTE,
) -> list[dict[str, float]]:
    """Times greedy generation by the real Decoder; returns one row of results per batch size.

    Args:
      config: finalized config of the model.
      params: the weights, in the stored layout.
      batch_sizes: texts per batch.
      prompt_tokens: length of each prompt of random ids.
      new_tokens: tokens to generate after each prompt, at least 2.
      repeats: runs per measurement; results are medians and exclude compilation.
      weight_dtype: of the matrices.

    Returns:
      Dicts of `batch_size`, `compile_seconds` (with the first run), `prefill_tokens_per_second`,
      `decode_tokens_per_second`, `ms_per_token` (one token in every row), `floor_ms_per_token`,
      `fraction_of_floor` (1: limited by the memory bandwidth alone) and `cache_bytes_per_token`
      (of all layers, for one text). Other attentions than grouped-query also have
      `grouped_query_cache_bytes_per_token`, which grouped-query attention with as many heads
      would need.
    """
    if new_tokens < 2:
        raise ValueError(f'new_tokens={new_tokens} must be at least 2: the first is the prefill')
    # An end-of-text id outside the vocabulary: no text ends early.
    decoder = Decoder(
        freeze(config),
        params,
        vocab_size=config.vocab_size,
        eot_id=config.vocab_size,
        weight_dtype=weight_dtype,
    )
    bandwidth = read_bandwidth()
    cache = {'cache_bytes_per_token': cache_bytes_per_token(decoder.executed_config)}
    if not isinstance(config.attention, GroupedQuery):
        grouped = grouped_query_cache_bytes_per_token(decoder.executed_config)
        cache['grouped_query_cache_bytes_per_token'] = grouped
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
        if token <= 0:  # the machine was busy during the prefill: an upper bound instead
            token = total / new_tokens
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
            | cache
        )
    return rows


def _bytes_per_token(decoder: Decoder, batch_size: int, length: float) -> float:
    """Returns the bytes read per decoding step: weights, and a cache of `length` tokens per row."""
    c, params = decoder.executed_config, decoder.params
    matrices = {name: leaf for name, leaf in params.items() if name != 'position'}
    if not c.tie_embeddings:
        del matrices['embedding']  # only single rows of it are read, as of the positions
    leaves = jax.tree.leaves(matrices)
    cache = cache_bytes_per_token(c) * length * batch_size
    return sum(leaf.nbytes for leaf in leaves) + cache


def _seconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
