"""The table of chips."""

import types

import jax
import pytest

from gpt_jax.telemetry import chips


@pytest.mark.parametrize(
    ('kind', 'teraflops', 'gib'),
    [('NVIDIA H100 80GB HBM3', 989.4, 80), ('TPU v5 lite', 197.0, 16), ('TPU v4', 275.0, 32)],
)
def test_known_chips(kind, teraflops, gib):
    assert chips.peak_flops(kind) == teraflops * 1e12
    assert chips.memory_size(kind) == gib


def test_an_unknown_chip_is_none_not_zero():
    (kind,) = {device.device_kind for device in jax.devices()}
    assert kind == 'cpu'
    assert chips.peak_flops(kind) is None
    assert chips.memory_size(kind) is None
    assert chips.memory_in_use(jax.devices()[0]) is None


def test_memory_in_use_is_in_gib():
    device = types.SimpleNamespace(memory_stats=lambda: {'bytes_in_use': 3 * 2**29})
    assert chips.memory_in_use(device) == 1.5


def test_every_entry_has_the_order_of_magnitude_of_its_unit():
    for kind, chip in chips.CHIPS.items():
        assert 1e13 < chip.peak_flops < 1e16, kind
        assert 8e9 < chip.memory_bytes < 1e12, kind
        assert 1e11 < chip.memory_bandwidth < 1e13, kind
        for link in (chip.interconnect, chip.network):
            assert link is None or 1e9 < link < chip.memory_bandwidth, kind
