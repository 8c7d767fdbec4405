"""The machine and versions of a measurement, so that measurements can be compared."""

import datetime
import os
import pathlib
import platform
from typing import Any

import jax
import jaxlib
from jax.sharding import Mesh


def describe_machine(mesh: Mesh) -> dict[str, Any]:
    """Returns the date, versions, devices and host."""
    return {
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'jaxlib': jaxlib.__version__,
        'device_kind': mesh.devices.flat[0].device_kind,
        'device_count': mesh.size,
        'process_count': jax.process_count(),
        'host_cpu': _cpu_model(),
        'host_usable_cores': _usable_cores(),
        'host_system': platform.platform(),
    }


def _usable_cores() -> int:
    """Returns the number of cores that this process may use, perhaps not all of the machine."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """Returns the name of the processor, if the system provides it."""
    cpuinfo = pathlib.Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
