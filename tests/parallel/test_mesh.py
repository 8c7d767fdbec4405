"""The devices of a mesh, its sizes, and the process of each row."""

import jax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from gpt_jax.errors import UserError
from gpt_jax.parallel import rules
from gpt_jax.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ('sizes', 'expected'),
    [
        ({}, (8, 1, 1, 1, 1)),
        ({'data': 3}, (3, 1, 1, 1, 1)),
        ({'fsdp': 4, 'tensor': 2}, (1, 4, 1, 1, 2)),
        ({'data': 2, 'context': -1, 'tensor': 2}, (2, 1, 1, 2, 2)),
        ({'data': 1, 'fsdp': -1}, (1, 8, 1, 1, 1)),
        ({'data': 4, 'fsdp': 2, 'slices': 1}, (4, 2, 1, 1, 1)),
        ({'fsdp': 2, 'expert': 4}, (1, 2, 4, 1, 1)),
    ],
)
def test_sizes(sizes, expected):
    mesh = make_mesh(MeshConfig(**sizes))
    assert mesh.axis_names == ('data', 'fsdp', 'expert', 'context', 'tensor')
    assert mesh.devices.shape == expected


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ({'fsdp': 3}, '3 does not divide the 8 devices here'),
        ({'data': 3, 'tensor': 4}, 'needs 12 devices and here are 8; make an axis smaller'),
        ({'fsdp': -1}, 'only one axis can be -1'),
        ({'data': 0}, 'config.mesh.data=0 is not a size'),
        ({'tensor': -2}, 'config.mesh.tensor=-2 is not a size'),
        ({'slices': 3}, 'config.mesh.slices=3 does not divide the data axis, which is 8'),
        ({'slices': 2}, 'config.mesh.slices=2: '),  # one process is one island
    ],
)
def test_what_does_not_fit_is_one_line(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**sizes))


class Chip:
    """A device of a pod, as far as a mesh looks at it."""

    platform, device_kind = 'gpu', 'described'

    def __init__(self, index: int, *, slices: int, processes: int):
        self.id, self.process_index = index, index * processes // 16
        self.slice_index = index * slices // 16


def pod(*, slices: int = 1, processes: int = 4) -> list[Chip]:
    return [Chip(i, slices=slices, processes=processes) for i in range(16)]


def test_the_data_axis_spans_the_slices():
    mesh = make_mesh(MeshConfig(fsdp=4, slices=2), pod(slices=2))
    for half, slice_index in ((mesh.devices[:2], 0), (mesh.devices[2:], 1)):
        assert {device.slice_index for device in half.flat} == {slice_index}


@pytest.mark.parametrize(
    ('sizes', 'count'),
    [({}, 4), ({'fsdp': 4}, 4), ({'tensor': 8}, 2), ({'tensor': 4}, 4), ({'context': 16}, 1)],
)
def test_processes_that_share_sequences_read_the_same_rows(sizes, count, monkeypatch):
    """16 devices of 4 processes: a process of each share, and none left out."""
    mesh = make_mesh(MeshConfig(**sizes), pod())
    shares = []
    for process in range(4):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        shares.append(rules.process_rows(mesh))
    assert shares == [(process * count // 4, count) for process in range(4)]


def boxed(*shape, names):
    return nn.Partitioned(jax.ShapeDtypeStruct(shape, 'float32'), names)


@pytest.mark.parametrize(
    ('parameter', 'expected'),
    [
        (boxed(2, 64, 4, 16, names=('layers', 'embed', 'heads', 'head_dim')), (0, 'f', 't', 0)),
        (boxed(2, 64, 5, 16, names=('layers', 'embed', 'heads', 'head_dim')), (0, 'f', 0, 0)),
        (boxed(2, 63, 4, 16, names=('layers', 'embed', 'heads', 'head_dim')), (0, 0, 't', 0)),
        (boxed(2, 64, names=('layers', 'embed')), (0, 0)),
        (boxed(64, names=('embed',)), (0,)),
        (boxed(2, 256, names=('layers', 'mlp')), (0, 't')),
        (boxed(128, 64, names=('vocab', 'embed')), ('t', 'f')),
    ],
)
def test_what_devices_do_not_divide_stays_whole(parameter, expected):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    axes = {'f': 'fsdp', 't': 'tensor', 0: None}
    sharding = rules.parameter_shardings({'x': parameter}, mesh)['x']
    assert sharding.spec == PartitionSpec(*(axes[axis] for axis in expected))


def test_what_stays_whole_is_said():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    tree = {
        'a': boxed(2, 64, 25, 16, names=('layers', 'embed', 'heads', 'head_dim')),
        'b': boxed(2, 25, 16, 64, names=('layers', 'heads', 'head_dim', 'embed')),
        'c': boxed(2, 63, names=('layers', 'embed')),
    }
    assert rules.undivided(tree, mesh) == ['heads=25 (tensor=4)', 'embed=63 (fsdp=2)']


def test_an_axis_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"\['width'\] have no rule"):
        rules.parameter_shardings({'x': boxed(4, names=('width',))}, make_mesh(MeshConfig()))
