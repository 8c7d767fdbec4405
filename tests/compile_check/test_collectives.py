"""Bytes of collectives: of programs compiled here, and of what only a TPU's compiler writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from gpt_jax.compile_check.collectives import BETWEEN_SLICES, read_traffic

N, TRIPS = 8, 5
SIZE = 1024  # bytes of what a device holds


def _traffic(collective, *, slices=(0,) * N):
    """The traffic of `collective` over 8 CPU devices, called in a loop of five."""
    mesh = jax.make_mesh((N,), ('x',), axis_types=(AxisType.Auto,))

    def loop(x):
        def body(x, _):
            return collective(x), None

        return jax.lax.scan(body, x, None, length=TRIPS)[0]

    spec = PartitionSpec('x')
    mapped = jax.shard_map(loop, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    compiled = jax.jit(mapped).lower(jax.ShapeDtypeStruct((N * SIZE // 4,), jnp.float32)).compile()
    return read_traffic(compiled.as_text(), slices=slices)


def _ring(x):
    return jax.lax.ppermute(x, 'x', [(i, (i + 1) % N) for i in range(N)])


CASES = {
    'all-reduce': (lambda x: jax.lax.psum(x, 'x'), 2 * SIZE * (N - 1) / N),
    'all-gather': (lambda x: jax.lax.all_gather(x, 'x').sum(0), SIZE * (N - 1)),
    'reduce-scatter': (
        lambda x: jnp.tile(jax.lax.psum_scatter(x, 'x', tiled=True), N),
        SIZE / N * (N - 1),
    ),
    'all-to-all': (
        lambda x: jax.lax.all_to_all(x.reshape(N, -1), 'x', 0, 0).reshape(-1),
        SIZE * (N - 1) / N,
    ),
    'collective-permute': (_ring, SIZE),
}


@pytest.mark.parametrize('kind', CASES)
def test_what_a_device_sends_in_a_loop(kind):
    collective, sent = CASES[kind]
    step = _traffic(collective)
    assert step.unknown_loops == 0
    [traffic] = [each for each in step.traffic if each.kind == kind]
    assert traffic.calls == TRIPS
    assert traffic.sent_bytes == pytest.approx(TRIPS * sent)
    assert step.interconnect_bytes() == traffic.sent_bytes
    assert step.network_bytes() == 0


def test_what_leaves_a_slice_is_told_apart():
    step = _traffic(lambda x: jax.lax.psum(x, 'x'), slices=(0,) * 4 + (1,) * 4)
    assert step.interconnect_bytes() == 0
    assert step.network_bytes() == pytest.approx(TRIPS * CASES['all-reduce'][1])
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    step = _traffic(
        lambda x: jax.lax.psum(x, 'x', axis_index_groups=groups), slices=(0,) * 4 + (1,) * 4
    )
    assert step.network_bytes() == 0
    assert step.interconnect_bytes() == pytest.approx(TRIPS * 2 * SIZE * 3 / 4)


# As libtpu writes it: a loop whose length stands in its condition only (it counts 0, 2, 4, 6), a
# gather that begins before the loop, goes on in a fusion inside and ends behind it, groups by the
# names of mesh axes, and what slices hand to the network.
TPU = """
HloModule jit_step, is_scheduled=true

%start (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%goes_on (q: bf16[4,8]) -> bf16[16,8] {
  %q = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.2 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%q), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%body (arg: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %arg = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %two)
  %f = bf16[16,8]{1,0} fusion(%x), kind=kLoop, calls=%goes_on
  %cp = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %done = bf16[4,8]{1,0} collective-permute-done(%cp)
  ROOT %t = (u32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%next, %done)
}

%condition (arg.1: (u32[], bf16[4,8])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8)
  %arg.1 = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (w: bf16[4,8]) -> bf16[4,8] {
  %w = bf16[4,8]{1,0} parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %s = bf16[16,8]{1,0} fusion(%w), kind=kCustom, calls=%start
  %init = (u32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%zero, %w)
  %loop = (u32[]{:T(128)}, bf16[4,8]{1,0}) while(%init), condition=%condition, body=%body
  %after = token[] after-all()
  %send = (f32[32]{0}, u32[], token[]) send(%w, %after), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %r = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_what_a_tpu_compiler_writes():
    step = read_traffic(TPU, slices=[0, 0, 0, 0, 1, 1, 1, 1])
    found = {each.kind: each for each in step.traffic}
    block = 2 * 4 * 8
    assert found['collective-permute'].calls == 4
    assert found['collective-permute'].sent_bytes == 4 * block
    assert found['all-gather'].calls == 1
    assert found['all-gather'].sent_bytes == 3 * block
    assert found[BETWEEN_SLICES].network_bytes == 4 * 32
    assert step.interconnect_bytes() == 7 * block
    assert step.unknown_loops == 0


def test_a_loop_of_unknown_length_is_counted_once_and_told():
    step = read_traffic(TPU.replace('direction=LT', 'direction=NE'), slices=[0] * N)
    assert step.unknown_loops == 1
    assert {each.kind: each.calls for each in step.traffic}['collective-permute'] == 1


@pytest.mark.parametrize(
    'groups, members',
    [
        ('replica_groups={{0,1,2,3},{4,5,6,7}}', 4),
        ('replica_groups=[4,2]<=[8]', 2),
        ('replica_groups=[2,4]<=[4,2]T(1,0)', 4),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", 4),
        ('replica_groups={}', 8),
    ],
)
def test_every_way_to_write_groups(groups, members):
    line = f'  %r = f32[256]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add'
    module = 'ENTRY %main (x: f32[256]) -> f32[256] {\n' + line + '\n}\n'
    sent = read_traffic(module, slices=[0] * N).interconnect_bytes()
    assert sent == pytest.approx(2 * 1024 * (members - 1) / members)
    [third] = read_traffic(module, slices=[0] * N, steps=3).traffic
    assert third.sent_bytes == pytest.approx(sent / 3)
    halves = read_traffic(module, slices=[0] * 4 + [1] * 4).network_bytes()
    stays = groups in ('replica_groups={{0,1,2,3},{4,5,6,7}}', 'replica_groups=[4,2]<=[8]')
    assert (halves == 0) == stays
    assert np.isfinite(sent)
