"""Compilation of a run's step for described devices, and its memory, traffic and roofline."""

import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.compile_check.collectives import StepTraffic, read_traffic
from gpt_jax.compile_check.roofline import Roofline, estimate_step
from gpt_jax.compile_check.topology import slices_of
from gpt_jax.config import RunConfig
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import batch_sharding, parts
from gpt_jax.telemetry.chips import CHIPS
from gpt_jax.train.memory import (
    OUT_OF_MEMORY,
    MemoryPlan,
    Overrides,
    estimate_memory,
    fitting,
    memory_limit,
    memory_savers,
)
from gpt_jax.train.program import Program, make_program

TRIES_PER_FAMILY = 3
_UNITS = {'': 1, 'B': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_SIZE = r'([\d.]+)([KMGT]?)B?'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One compilation of the step. Bytes are per device."""

    fits: bool
    limit_bytes: float  # available to a program
    peak_bytes: float | None  # at most (`_usage`). None: XLA ran out of memory and did not say
    parameters: float
    optimizer_state: float
    gradients: float
    logits: float
    activations: float | None  # the rest of XLA's temporaries, workspace included
    code: float | None
    estimated_peak_bytes: float  # by the formula of train/memory.py
    compile_seconds: float
    message: str  # XLA's error if it ran out of memory, else ''
    traffic: StepTraffic | None
    roofline: Roofline | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """Overrides proposed by the formula, and the result of compiling them."""

    overrides: Overrides
    check: Check


def abstract_batches(program: Program, config: RunConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the batch of one call: `[B, L+1]`, stacked for several steps."""
    steps = program.steps_per_call
    rows = (config.train.batch_size, config.model.max_seq_len + 1)
    shape = rows if steps == 1 else (steps, *rows)
    sharding = batch_sharding(program.mesh, rows_axis=len(shape) - 2)
    names = ['tokens', *(['segment_ids'] if config.data.segment_ids else [])]
    return {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding) for name in names}


def lower_step(program: Program, config: RunConfig) -> jax.stages.Lowered:
    """Lowers the call that a run makes, from shapes alone."""
    step = program.train_step if program.steps_per_call == 1 else program.train_steps
    return step.lower(program.abstract_state, abstract_batches(program, config), program.numbers)


def check_program(program: Program, config: RunConfig) -> Check:
    """Compiles the step of a program; the devices of its mesh may be described ones."""
    devices = list(program.mesh.devices.flat)
    limit = memory_limit(devices[0]) or float('inf')
    plan = estimate_memory(program, config)
    began = time.perf_counter()
    lowered = lower_step(program, config)
    try:
        with _kept_out_of_the_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        return _refused(str(error), plan, limit, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    held, temporary, code = _usage(compiled.memory_analysis(), devices[0].platform, limit)
    peak = held + temporary + code
    state = plan.parameters + plan.optimizer_state
    logits = min(plan.logits, temporary)
    gradients = min(plan.gradients, temporary - logits)
    chip = CHIPS.get(devices[0].device_kind)
    traffic = read_traffic(
        compiled.as_text(), slices=slices_of(devices), steps=program.steps_per_call
    )
    roofline = None
    if chip is not None:
        roofline = estimate_step(
            config,
            chip,
            plan,
            traffic,
            devices=len(devices),
            micro_batches=program.micro_batches,
            model_parts=parts('mlp', program.mesh),
        )
    return Check(
        fits=peak <= limit,
        limit_bytes=limit,
        peak_bytes=peak,
        parameters=plan.parameters,
        optimizer_state=plan.optimizer_state,
        gradients=gradients,
        logits=logits,
        # Plus the padding of the arguments to the chip's tiles.
        activations=temporary - logits - gradients + max(0, held - state),
        code=code,
        estimated_peak_bytes=plan.total,
        compile_seconds=seconds,
        message='',
        traffic=traffic,
        roofline=roofline,
    )


def _usage(memory: Any, platform: str, limit: float) -> tuple[float, float, float]:
    """Returns the bytes of arguments and results, of temporaries, and of code.

    The TPU compiler refuses a step that exceeds the limit. But its statistics count the gaps
    between temporaries twice, so that the sum of a step that fits may exceed it.
    """
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    code = memory.generated_code_size_in_bytes
    temporary = memory.temp_size_in_bytes
    return held, min(temporary, limit - held - code) if platform == 'tpu' else temporary, code


@contextlib.contextmanager
def _kept_out_of_the_cache() -> Iterator[None]:
    """Disables writes to the persistent cache, because this machine could not use the entries."""
    name = 'jax_persistent_cache_min_compile_time_secs'
    before = getattr(jax.config, name)
    jax.config.update(name, float('inf'))
    try:
        yield
    finally:
        jax.config.update(name, before)


def _refused(message: str, plan: MemoryPlan, limit: float, seconds: float) -> Check:
    """Returns the check of a step for which XLA ran out of memory."""
    line = message.strip().splitlines()[0]
    available = re.search(rf'available HBM \({_SIZE}\)|of {_SIZE} hbm', message)
    needed = re.search(rf'\({_SIZE}\) exceeds|Used {_SIZE} of', message)
    temporary = _bytes(needed) if needed else None
    known = plan.parameters + plan.optimizer_state
    whole = temporary is not None and 'HLO temporaries' not in message
    peak = None if temporary is None else temporary + (0 if whole else known)
    rest = None if peak is None else max(0.0, peak - known - plan.gradients - plan.logits)
    return Check(
        fits=False,
        limit_bytes=_bytes(available) if available else limit,
        peak_bytes=peak,
        parameters=plan.parameters,
        optimizer_state=plan.optimizer_state,
        gradients=plan.gradients,
        logits=plan.logits,
        activations=rest,
        code=None,
        estimated_peak_bytes=plan.total,
        compile_seconds=seconds,
        message=line,
        traffic=None,
        roofline=None,
    )


def _bytes(match: re.Match) -> float:
    number, unit = [group for group in match.groups() if group is not None][:2]
    return float(number) * _UNITS[unit]


def find_fitting(
    program: Program,
    config: RunConfig,
    *,
    limit: float,
    most: int,
    report: Callable[[Overrides], None],
) -> list[Attempt]:
    """Compiles overrides that may make the step fit, the mildest of each family first.

    If overrides that fit by the formula do not fit when compiled, the next of the family follow.

    Args:
      limit: bytes that a program may use per device.
      most: the maximum number of compilations.
      report: called with the overrides before each compilation.
    """
    attempts: list[Attempt] = []
    for family in memory_savers(program, config):
        candidates = fitting(program, config, family, limit=limit)
        for overrides, changed, candidate in itertools.islice(candidates, TRIES_PER_FAMILY):
            if len(attempts) == most:
                return attempts
            report(overrides)
            check = check_program(candidate, changed)
            attempts.append(Attempt(overrides=overrides, check=check))
            if check.fits:
                break
    return attempts


def build(config: RunConfig, devices: Sequence[jax.Device]) -> Program:
    """Builds the program of a finalized config on described devices."""
    return make_program(config, make_mesh(config.mesh, devices))
