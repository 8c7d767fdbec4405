"""The speed of training: the calls of the training loop, timed in groups of steps."""

import itertools
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gpt_jax.benchmark.start_up import StartUp
from gpt_jax.config import RunConfig
from gpt_jax.telemetry.chips import peak_flops
from gpt_jax.train.flops import recomputed_flops_per_token, train_flops_per_token
from gpt_jax.train.program import Program

CACHE_HIT = '/jax/compilation_cache/cache_hits'
FORMULAS = {
    'step_ms': 'median over groups of (seconds of a group, blocked at its end) / steps_per_group',
    'model_flops_per_step': 'tokens x (6 x weights in products + 12 x heads x head_dim x context '
    'x layers); the causal half is counted in full, a window by its width; other attentions than '
    'grouped-query have a term of their own',
    'hardware_flops_per_step': 'the same, plus what config.model.execution.remat recomputes',
    'mfu': 'model_flops_per_step / (seconds per step x device_count x peak_flops)',
    'hfu': 'hardware_flops_per_step / (seconds per step x device_count x peak_flops)',
    'peak_flops': "FLOP/s of one device's dense bfloat16 products, as its maker publishes them",
}


def synthetic_batches(
    config: RunConfig, *, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator over one batch of random tokens, with one process's rows."""
    rows = config.train.batch_size // process_count
    shape = (rows, config.model.max_seq_len + 1)
    random = np.random.default_rng(config.seed)
    batch = {'tokens': random.integers(0, config.model.vocab_size, shape, np.int32)}
    if config.data.segment_ids:
        batch['segment_ids'] = np.ones(shape, np.int32)
    return itertools.repeat(batch)


class TrainingBenchmark:
    """A compiled program after its first call, ready to be timed.

    Attributes:
      compiled: the executable that every step runs.
      compilation: the seconds to trace and to compile it, and the outcome of the cache.
    """

    def __init__(
        self,
        program: Program,
        config: RunConfig,
        batches: Iterator[dict[str, np.ndarray]],
        *,
        start_up: StartUp | None = None,
    ):
        """Initialises the state, compiles the call of one or several steps, and runs it once."""
        self._program, self._config, self._batches = program, config, batches
        self._start_up = start_up = start_up or StartUp()
        self._state = jax.block_until_ready(program.init(jax.random.key(config.seed)))
        start_up.mark('initialise')
        lowered = program.lower(self._state, self._next_call())
        start_up.mark('trace and lower')
        events: list[str] = []
        listener = lambda event, **_: events.append(event)  # noqa: E731 (to unregister it)
        jax.monitoring.register_event_listener(listener)
        self.compiled = lowered.compile()
        jax.monitoring.unregister_event_listener(listener)
        start_up.mark('compile')
        self.compilation = {
            'trace_seconds': start_up.seconds['trace and lower'],
            'compile_seconds': start_up.seconds['compile'],
            'compile_cache': _cache_outcome(events),
        }
        self._metrics: dict[str, jax.Array] = {}
        self.run(program.steps_per_call)
        start_up.mark('first call')

    def whole_calls(self, steps: int) -> int:
        """Returns `steps`, rounded up to whole calls of the device."""
        return math.ceil(steps / self._program.steps_per_call) * self._program.steps_per_call

    def run(self, steps: int) -> tuple[float, float]:
        """Runs `steps` steps in whole calls; returns the seconds in all and those spent on data."""
        waited = 0.0
        began = time.perf_counter()
        for number in range(0, steps, self._program.steps_per_call):
            asked = time.perf_counter()
            batches = self._next_call()
            waited += time.perf_counter() - asked
            previous = self._metrics
            with jax.profiler.StepTraceAnnotation('train', step_num=number):
                self._state, self._metrics = self._program.advance(self._state, batches)
            jax.device_get(previous)  # as in the loop, the host is at most one call ahead
        jax.block_until_ready((self._state, self._metrics))
        return time.perf_counter() - began, waited

    def _next_call(self) -> list[dict[str, np.ndarray]]:
        return list(itertools.islice(self._batches, self._program.steps_per_call))

    def measure(self, *, warmup: int, groups: int, steps: int) -> dict[str, Any]:
        """Times `groups` groups of `steps` steps after `warmup` steps; returns results by name.

        Steps and warm-up are rounded up to whole calls.
        """
        warmup, steps = self.whole_calls(warmup), self.whole_calls(steps)
        self.run(warmup)
        timed = [self.run(steps) for _ in range(groups)]
        step_ms = [1e3 * seconds / steps for seconds, _ in timed]
        median = statistics.median(step_ms)
        tokens = self._config.train.batch_size * self._config.model.max_seq_len
        peak, source = peak_memory(self._program, self.compiled)
        return {
            'step_ms': median,
            'step_ms_min': min(step_ms),
            'step_ms_max': max(step_ms),
            'step_ms_groups': step_ms,
            'steps_per_group': steps,
            'steps_per_call': self._program.steps_per_call,
            'warmup_steps': warmup,
            'tokens_per_step': tokens,
            'tokens_per_second': 1e3 * tokens / median,
            'data_wait_seconds': sum(waited for _, waited in timed) / (groups * steps),
            'loss': float(np.atleast_1d(self._metrics['loss'])[-1]),
            **flops(self._config, self._program, tokens=tokens, seconds=median / 1e3),
            'peak_memory_bytes': peak,
            'peak_memory_source': source,
            **self.compilation,
            'seconds_to_first_step': self._start_up.total,
            'seconds_to_first_step_since': self._start_up.since,
            'start_up_seconds': self._start_up.seconds,
            'formulas': FORMULAS,
        }


def flops(
    config: RunConfig, program: Program, *, tokens: int, seconds: float
) -> dict[str, float | None]:
    """Returns the FLOPs of a step of `tokens` tokens, and their fraction of the devices' peak.

    The fractions (MFU, HFU) are None if the peak is unknown, as on a CPU.
    """
    length = config.model.max_seq_len
    model = tokens * train_flops_per_token(config.model, length=length)
    hardware = model + tokens * recomputed_flops_per_token(config.model, length=length)
    peak = peak_flops(program.mesh.devices.flat[0].device_kind)
    available = None if peak is None else peak * program.mesh.size * seconds
    return {
        'model_flops_per_step': model,
        'hardware_flops_per_step': hardware,
        'peak_flops': peak,
        'mfu': None if available is None else model / available,
        'hfu': None if available is None else hardware / available,
    }


def peak_memory(program: Program, compiled: jax.stages.Compiled) -> tuple[int, str]:
    """Returns the peak memory of a device in bytes, and the source of the number."""
    devices = [device for device in program.mesh.devices.flat if device in jax.local_devices()]
    statistics_of = [device.memory_stats() or {} for device in devices]
    if all('peak_bytes_in_use' in each for each in statistics_of):
        return max(each['peak_bytes_in_use'] for each in statistics_of), 'device.memory_stats()'
    if devices[0].platform == 'cpu':  # XLA's plan for a CPU omits allocations of its libraries
        kibibytes = sys.platform != 'darwin'  # getrusage(2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if kibibytes else 1)
        return peak, 'peak resident set of the whole process'
    plan = compiled.memory_analysis()
    planned = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return planned - plan.alias_size_in_bytes, "compiled.memory_analysis(), XLA's plan of the step"


def _cache_outcome(events: list[str]) -> str:
    """Returns the outcome of the persistent cache: 'hit', 'miss' or 'off'."""
    if not jax.config.jax_compilation_cache_dir:
        return 'off'
    return 'hit' if CACHE_HIT in events else 'miss'
