"""Described devices: what the user may write, and what is missing."""

import importlib.util

import pytest

from gpt_jax.compile_check.topology import describe_devices, slices_of
from gpt_jax.errors import UserError
from gpt_jax.telemetry.chips import CHIPS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='libtpu is absent: requirements-tpu.txt'
)


@pytest.mark.parametrize('topology', ['v5e', 'v5e:', 'v5e:4by4', 'tpu:4x4', 'a100:8', '4x4'])
def test_what_is_no_topology(topology):
    with pytest.raises(UserError, match='is not a topology; write v5e:4x4'):
        describe_devices(topology)


@pytest.mark.parametrize('topology, extra', [('v5e:2x2', 'tpu'), ('h100:8', 'cuda')])
def test_a_missing_compiler_names_its_extra(topology, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=rf'requirements-{extra}.txt \(the extra \[{extra}\]\)'):
        describe_devices(topology)


def test_slices_are_of_tpus(monkeypatch):
    with pytest.raises(UserError, match='write the nodes of GPUs as h100:2x8'):
        describe_devices('h100:8', num_slices=2)
    with pytest.raises(UserError, match='--num_slices=0'):
        describe_devices('v5e:2x2', num_slices=0)


@needs_libtpu
@pytest.mark.parametrize(
    'topology, count',
    [('v4:2x2x1', 4), ('v5e:2x2', 4), ('v5e:16x16', 256), ('v5p:2x2x1', 4), ('v6e:4x4', 16)],
)
def test_every_chip_is_in_the_table(topology, count):
    devices = describe_devices(topology)
    assert len(devices) == count
    assert {device.platform for device in devices} == {'tpu'}
    assert devices[0].device_kind in CHIPS
    assert set(slices_of(devices)) == {0}


@needs_libtpu
def test_several_slices():
    devices = describe_devices('v5e:2x2', num_slices=2)
    assert slices_of(devices) == [0] * 4 + [1] * 4


@needs_libtpu
def test_a_shape_that_the_chip_does_not_come_in():
    with pytest.raises(UserError, match='--topology=v5e:3x5: '):
        describe_devices('v5e:3x5')
