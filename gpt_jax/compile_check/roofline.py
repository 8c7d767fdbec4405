"""A roofline estimate of the fastest possible step: the longest of compute, memory and links.

The estimate uses published peaks (Williams et al. 2009, https://doi.org/10.1145/1498765.1498785).
Nothing is run, and a real step is slower.
"""

import dataclasses

import jax.numpy as jnp

from gpt_jax.compile_check.collectives import StepTraffic
from gpt_jax.config import RunConfig
from gpt_jax.model.remat import kept_products
from gpt_jax.telemetry.chips import Chip
from gpt_jax.train.flops import recomputed_flops_per_token, train_flops_per_token
from gpt_jax.train.memory import MemoryPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds per step for each resource, and the speed if they overlap perfectly."""

    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float | None  # None: unknown bandwidth
    network_seconds: float | None
    step_seconds: float  # the largest of them
    serial_seconds: float  # their sum: nothing overlaps
    tokens_per_second: float
    mfu: float  # model FLOPs only; recomputation does not count as use
    bound: str  # the resource that takes longest


def estimate_step(
    config: RunConfig,
    chip: Chip,
    plan: MemoryPlan,
    traffic: StepTraffic,
    *,
    devices: int,
    micro_batches: int,
    model_parts: int,
) -> Roofline:
    """Estimates the roofline of a step.

    FLOPs are those of `train/flops.py`, including recomputation. Memory traffic is the state read
    and written once, and per micro-batch: the gradients written and read; the weights in the
    compute dtype read for the forward and backward pass (once more if remat recomputes their
    products); and the plan's activations written and read once.

    Args:
      plan: bytes of one micro-batch on one device.
      model_parts: devices over which a weight is sharded when it is used (tensor parallelism).
    """
    train, model = config.train, config.model
    tokens, length = train.batch_size * model.max_seq_len, model.max_seq_len
    useful = tokens * train_flops_per_token(model, length=length)
    done = useful + tokens * recomputed_flops_per_token(model, length=length)
    weights = _weight_bytes(config) / model_parts
    passes = 2 if kept_products(model.execution.remat) else 3
    moved = 2 * (plan.parameters + plan.optimizer_state) + micro_batches * (
        2 * plan.parameters + passes * weights + 2 * plan.activations
    )
    seconds: dict[str, float | None] = {
        'compute': done / (devices * chip.peak_flops),
        'memory': moved / chip.memory_bandwidth,
        'interconnect': _over(traffic.interconnect_bytes(), chip.interconnect),
        'network': _over(traffic.network_bytes(), chip.network),
    }
    known = {name: value for name, value in seconds.items() if value is not None}
    step = max(known.values())
    return Roofline(
        **{f'{name}_seconds': value for name, value in seconds.items()},
        step_seconds=step,
        serial_seconds=sum(known.values()),
        tokens_per_second=tokens / step,
        mfu=useful / (step * devices * chip.peak_flops),
        bound=max(known, key=known.get),
    )


def _weight_bytes(config: RunConfig) -> float:
    """Returns the bytes of all weights of matrix products, in the compute dtype."""
    flops_per_weight = 6
    weights = train_flops_per_token(config.model, length=0) / flops_per_weight
    return weights * jnp.dtype(config.model.precision.compute).itemsize


def _over(size: float, bandwidth: float | None) -> float | None:
    return 0.0 if not size else None if bandwidth is None else size / bandwidth
