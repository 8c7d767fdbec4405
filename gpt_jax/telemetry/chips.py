"""Data sheet of accelerators: peak FLOP/s (the basis of MFU), memory and links.

Peaks are the vendor's figures for dense bfloat16 matmuls (float16 for chips without bfloat16),
without structured sparsity. Bandwidths are peaks too; those of links are per device, summed over
its links, in one direction.
"""

import dataclasses
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True, slots=True)
class Chip:
    """The specification of one device, as jax counts devices."""

    peak_flops: float  # per second, dense bfloat16 with float32 accumulation
    memory_bytes: int
    memory_bandwidth: float  # bytes/s
    interconnect: float | None = None  # bytes/s to others of its slice or node: ICI, NVLink, PCIe
    network: float | None = None  # bytes/s per device to other slices or nodes


# By `jax.Device.device_kind`. GPU names are those of the CUDA driver. A TPU v2 or v3 device is
# one core, half of the chip that Google describes. A GPU's NVLink or PCIe figure is from the page
# of its memory, halved to one direction. Its network is the per-GPU adapter of NVIDIA's DGX system
# (https://docs.nvidia.com/dgx/); clouds may provide less.
CHIPS: dict[str, Chip] = {
    # https://www.nvidia.com/en-us/data-center/h100/ (halved: the page counts sparsity)
    'NVIDIA H100 80GB HBM3': Chip(989.4e12, 80 * GIB, 3.35e12, 450e9, 50e9),
    'NVIDIA H100 PCIe': Chip(756.0e12, 80 * GIB, 2.0e12, 64e9),
    'NVIDIA H100 NVL': Chip(835.5e12, 94 * GIB, 3.9e12, 300e9),
    # https://www.nvidia.com/en-us/data-center/h200/
    'NVIDIA H200': Chip(989.4e12, 141 * 10**9, 4.8e12, 450e9, 50e9),
    'NVIDIA H200 NVL': Chip(835.5e12, 141 * 10**9, 4.8e12, 450e9),
    'NVIDIA GH200 480GB': Chip(989.4e12, 96 * GIB, 4.0e12, 450e9),
    # https://resources.nvidia.com/en-us-blackwell-architecture (B200: 180 GB of HBM3e usable)
    'NVIDIA B200': Chip(2250.0e12, 180 * 10**9, 8.0e12, 900e9, 50e9),
    # https://www.nvidia.com/en-us/data-center/a100/
    'NVIDIA A100-SXM4-40GB': Chip(312.0e12, 40 * GIB, 1.555e12, 300e9, 25e9),
    'NVIDIA A100-SXM4-80GB': Chip(312.0e12, 80 * GIB, 2.039e12, 300e9, 25e9),
    'NVIDIA A100-PCIE-40GB': Chip(312.0e12, 40 * GIB, 1.555e12, 32e9),
    'NVIDIA A100 80GB PCIe': Chip(312.0e12, 80 * GIB, 1.935e12, 32e9),
    # https://www.nvidia.com/en-us/data-center/v100/ (float16; it has no bfloat16)
    'Tesla V100-SXM2-16GB': Chip(125.0e12, 16 * GIB, 0.9e12, 150e9),
    'Tesla V100-SXM2-32GB': Chip(125.0e12, 32 * GIB, 0.9e12, 150e9),
    'Tesla V100-PCIE-16GB': Chip(112.0e12, 16 * GIB, 0.9e12, 16e9),
    'Tesla V100-PCIE-32GB': Chip(112.0e12, 32 * GIB, 0.9e12, 16e9),
    # https://www.nvidia.com/en-us/data-center/tesla-t4/ (float16)
    'Tesla T4': Chip(65.0e12, 16 * GIB, 0.3e12, 16e9),
    # https://www.nvidia.com/en-us/data-center/l4/ (halved)
    'NVIDIA L4': Chip(121.0e12, 24 * GIB, 0.3e12, 32e9),
    # NVIDIA's white papers "Ampere GA102" and "Ada", tables of the GeForce cards: tensor-core
    # bfloat16 with float32 accumulation
    'NVIDIA GeForce RTX 3090': Chip(71.0e12, 24 * GIB, 0.936e12, 32e9),
    'NVIDIA GeForce RTX 4090': Chip(165.2e12, 24 * GIB, 1.008e12, 32e9),
    # https://cloud.google.com/tpu/docs/v2, /v3, /v4, /v5e, /v5p, /v6e: the interconnect is half of
    # the bidirectional figure; the network is a pod's or a host's figure divided by its chips.
    'TPU v2': Chip(22.5e12, 8 * GIB, 0.35e12),
    'TPU v3': Chip(61.5e12, 16 * GIB, 0.45e12),
    'TPU v4': Chip(275.0e12, 32 * GIB, 1.2e12, 300e9, 6.25e9),
    'TPU v5 lite': Chip(197.0e12, 16 * GIB, 0.819e12, 200e9, 3.125e9),
    'TPU v5e': Chip(197.0e12, 16 * GIB, 0.819e12, 200e9, 3.125e9),
    'TPU v5': Chip(459.0e12, 95 * GIB, 2.765e12, 600e9, 6.25e9),
    'TPU v5p': Chip(459.0e12, 95 * GIB, 2.765e12, 600e9, 6.25e9),
    'TPU v6 lite': Chip(918.0e12, 32 * GIB, 1.6e12, 400e9, 12.5e9),
    'TPU v6e': Chip(918.0e12, 32 * GIB, 1.6e12, 400e9, 12.5e9),
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of a `jax.Device.device_kind` in FLOP/s; None if unknown, as for a CPU."""
    chip = CHIPS.get(device_kind)
    return chip.peak_flops if chip else None


def memory_size(device_kind: str) -> float | None:
    """Returns the memory of a `jax.Device.device_kind` in GiB; None if unknown."""
    chip = CHIPS.get(device_kind)
    return chip.memory_bytes / GIB if chip else None


def memory_in_use(device: Any) -> float | None:
    """Returns the memory in use on a `jax.Device`, in GiB; None if not reported, as by a CPU."""
    statistics = device.memory_stats()
    return statistics['bytes_in_use'] / GIB if statistics else None
