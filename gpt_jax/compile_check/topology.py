"""Descriptions of devices, for which XLA compiles without having any of them."""

import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from gpt_jax.errors import UserError

# Extra options of libtpu by the name in `--topology`.
TPUS: dict[str, dict[str, str]] = {
    'v4': {'chip_config_name': 'megacore'},  # its two cores are one device
    'v5e': {},
    'v5p': {},
    'v6e': {},
}
# Several processes may compile at once. The rest answers libtpu's questions about its own machine,
# which does not matter here.
LIBTPU_ENVIRONMENT = {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
}
# The description of a GPU for XLA's CUDA backend, in the format of XLA's own
# (xla/stream_executor/device_description.proto, xla/tools/hlo_opt/gpu_specs).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
GPUS: dict[str, str] = {'h100': H100}
FORMS = 'v5e:4x4 (also v4, v5p, v6e) or h100:8 (a node), h100:2x8 (nodes x GPUs)'


def describe_devices(topology: str, *, num_slices: int = 1) -> Sequence[jax.Device]:
    """Returns the devices of, say, `v5e:16x16` times `num_slices`, or `h100:2x8`; none can run.

    Raises:
        UserError: the topology is unknown, or the compiler for it is not installed.
    """
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
    if match is None or (match[1] not in TPUS and match[1] not in GPUS):
        raise UserError(f'--topology={topology!r} is not a topology; write {FORMS}')
    name, shape = match.groups()
    if num_slices < 1:
        raise UserError(f'--num_slices={num_slices} must be at least 1')
    try:
        if name in TPUS:
            return _describe_tpus(name, shape, num_slices)
        return _describe_gpus(name, shape, num_slices)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        advice = f'; whole hosts make a topology: try {name}:2x2' if name in TPUS else ''
        raise UserError(f'--topology={topology}: {reason}{advice}') from error


def _describe_tpus(name: str, shape: str, num_slices: int) -> Sequence[jax.Device]:
    _require('libtpu', extra='tpu')
    for name_of, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name_of, value)
    options = dict(TPUS[name])
    if num_slices > 1:
        options['num_slices'] = num_slices
    described = topologies.get_topology_desc(
        platform='tpu', topology_name=f'{name}:{shape}', **options
    )
    return described.devices


def _describe_gpus(name: str, shape: str, num_slices: int) -> Sequence[jax.Device]:
    if num_slices > 1:
        raise UserError('--num_slices is of TPUs; write the nodes of GPUs as h100:2x8')
    _require('jax_cuda12_plugin', extra='cuda')
    sizes = shape.split('x')
    if len(sizes) > 2:
        raise UserError(f'--topology={name}:{shape}: write {name}:8, or {name}:2x8 for two nodes')
    nodes, gpus = (['1', *sizes])[-2:]
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # the check would need a driver
    described = topologies.get_topology_desc(
        platform='cuda', target_config=GPUS[name], topology=f'1x{nodes}x{gpus}'
    )
    return described.devices


def _require(module: str, *, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f'compiling for this topology needs {module}: pip install -r requirements-{extra}.txt '
            f'(the extra [{extra}])'
        )


def slices_of(devices: Sequence[jax.Device]) -> list[int]:
    """Returns the slice or node of each device, within which links are fast."""
    if devices[0].platform == 'tpu':  # without an index if there is one slice
        return [getattr(device, 'slice_index', 0) for device in devices]
    return [device.process_index for device in devices]
