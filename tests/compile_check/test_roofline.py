"""The roofline: each resource by hand for a small case, and what decides."""

import pytest

from gpt_jax.compile_check.collectives import StepTraffic, Traffic
from gpt_jax.compile_check.roofline import estimate_step
from gpt_jax.config import finalize
from gpt_jax.telemetry.chips import Chip
from gpt_jax.train.flops import train_flops_per_token
from gpt_jax.train.memory import MemoryPlan
from tests.tiny_config import get_config

PLAN = MemoryPlan(parameters=100, optimizer_state=200, gradients=100, logits=0, activations=50)
TRAFFIC = StepTraffic(
    traffic=(Traffic(kind='all-gather', calls=1, sent_bytes=1000, network_bytes=400),),
    unknown_loops=0,
)
CONFIG = finalize(get_config(), vocab_size=65)
TOKENS = 8 * 32
FLOPS = TOKENS * train_flops_per_token(CONFIG.model, length=32)
WEIGHTS = 4 * train_flops_per_token(CONFIG.model, length=0) / 6


def _roofline(*, flops=1e12, memory=1e12, links=1e12, network=1e12):
    return estimate_step(
        CONFIG,
        Chip(flops, 2**34, memory, links, network),
        PLAN,
        TRAFFIC,
        devices=4,
        micro_batches=2,
        model_parts=2,
    )


def test_each_resource():
    roofline = _roofline()
    assert roofline.compute_seconds == pytest.approx(FLOPS / 4e12)
    # State twice; for both micro-batches gradients, half of the weights, and activations, twice.
    moved = 2 * 300 + 2 * (2 * 100 + 2 * WEIGHTS / 2 + 2 * 50)
    assert roofline.memory_seconds == pytest.approx(moved / 1e12)
    assert roofline.interconnect_seconds == pytest.approx(600 / 1e12)
    assert roofline.network_seconds == pytest.approx(400 / 1e12)


@pytest.mark.parametrize(
    'slow, bound',
    [('flops', 'compute'), ('memory', 'memory'), ('links', 'interconnect'), ('network', 'network')],
)
def test_the_slowest_decides(slow, bound):
    roofline = _roofline(**{slow: 1.0})
    assert roofline.bound == bound
    assert roofline.step_seconds == getattr(roofline, f'{bound}_seconds')
    assert roofline.tokens_per_second == pytest.approx(TOKENS / roofline.step_seconds)
    flops = 1.0 if slow == 'flops' else 1e12
    assert roofline.mfu == pytest.approx(FLOPS / (roofline.step_seconds * 4 * flops))


def test_recomputation_costs_time_and_is_no_use():
    config = get_config()
    config.model.execution.remat = 'full'
    config = finalize(config, vocab_size=65)
    again = estimate_step(
        config,
        Chip(1.0, 2**34, 1e12, 1e12, 1e12),
        PLAN,
        TRAFFIC,
        devices=4,
        micro_batches=2,
        model_parts=2,
    )
    plain = _roofline(flops=1.0)
    assert plain.mfu == pytest.approx(1)
    assert again.compute_seconds > 1.1 * plain.compute_seconds
    assert again.mfu < 0.9


def test_links_that_are_not_in_the_table_are_unknown():
    roofline = _roofline(links=None, network=None)
    assert roofline.interconnect_seconds is None and roofline.network_seconds is None
    assert roofline.step_seconds == max(roofline.compute_seconds, roofline.memory_seconds)
