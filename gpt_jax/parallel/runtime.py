"""Process-wide settings, made before the first computation."""

import dataclasses
import os
import pathlib
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import hardware_utils, xla_bridge  # hardware_utils: jax's own detection of TPUs

from gpt_jax.config_tree import check_domains, whole
from gpt_jax.errors import UserError
from gpt_jax.parallel import cluster, peers

# Read by libtpu when it is loaded.
NO_TPU = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
}
OPEN_FILES = 128  # a training run that saves opens about 90 at once
_OTHER_PLATFORM = 'unset it to take what there is, or set JAX_PLATFORMS=cpu'


def seconds(default: int) -> Any:
    """Declares a knob for a timeout in seconds."""
    return whole(default, low=1, high=1_000_000)


@dataclasses.dataclass(slots=True, kw_only=True)
class RuntimeConfig:
    """The compilation cache and the timeouts of multi-process runs."""

    compilation_cache: bool = True  # keep compiled programs in the user's cache folder
    connect_timeout: int = seconds(300)  # seconds to wait for all processes at the start
    heartbeat_timeout: int = seconds(10)  # seconds without heartbeat until a process counts as lost


def cache_folder() -> pathlib.Path:
    """Returns `$XDG_CACHE_HOME/gpt_jax`, by default `~/.cache/gpt_jax`."""
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(root) / 'gpt_jax'


def initialize(config: RuntimeConfig) -> None:
    """Prepares JAX for a run. A compilation cache configured through JAX itself is kept."""
    if config.compilation_cache and not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'compiled'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    silence_libtpu()


def silence_libtpu() -> None:
    """Sets the variables that libtpu would query, with warnings, on a machine without TPUs."""
    if not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)


def check_xla_flags() -> None:
    """Rejects XLA_FLAGS that XLA cannot parse; XLA would abort without an exception.

    Raises:
        UserError: XLA cannot parse a flag; the message names it.
    """
    if not os.environ.get('XLA_FLAGS') or xla_bridge.backends_are_initialized():
        return
    parsed = subprocess.run(
        [sys.executable, '-c', 'from jaxlib import _jax; _jax.CompileOptions()'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding='utf-8',
        errors='replace',
    )
    if parsed.returncode == 0:
        return
    unknown = re.search(r'Unknown flags? in XLA_FLAGS: *(.*)', parsed.stderr)
    reason = f'XLA does not know {unknown[1]}' if unknown else parsed.stderr.rpartition('] ')[2]
    raise UserError(f'XLA_FLAGS: {reason.strip()}; correct the variable, or unset it')


def allow_open_files() -> None:
    """Raises the process's limit of open files to its hard limit, at most 65536.

    Raises:
        UserError: the limit is below `OPEN_FILES`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        raise UserError(
            f'this process may open {soft} files and needs {OPEN_FILES}; raise the limit with '
            '`ulimit -n`'
        )


def explain(error: Exception) -> str:
    """Returns a line that explains a failure of the machine or environment; '' for others."""
    if 'Could not determine home directory' in str(error):
        return (
            'this user has no home folder; set HOME to a folder that can be written, or '
            'XDG_CACHE_HOME for the caches alone'
        )
    platforms = jax.config.jax_platforms
    if 'Unable to initialize backend' in str(error):
        reason = str(error).partition(': ')[2].partition(' (')[0].rstrip('.')
        return f'JAX_PLATFORMS={platforms or ""}: {reason}; {_OTHER_PLATFORM}'
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if (
        isinstance(error, AssertionError)
        and frames is not None
        and frames.tb_frame.f_globals['__name__'] == 'jax._src.xla_bridge'
    ):  # jax skips platforms without a device, and then none is left
        return f'JAX_PLATFORMS={platforms}: this machine has no such device; {_OTHER_PLATFORM}'
    return ''


def join(given: Mapping[str, str], config: RuntimeConfig) -> None:
    """Joins the other processes of the run, if flags or the environment name any.

    Must be called before any backend starts. From then on this process ends when another one is
    lost.

    Args:
      given: the flags of `cluster.FLAGS`, '' where absent.
      config: the timeouts.

    Raises:
        UserError: the flags or variables are incomplete, or the processes do not find each other.
    """
    check_domains(config, 'config.runtime')
    found = cluster.from_flags(given) or cluster.from_environment(
        os.environ, timeout=config.connect_timeout
    )
    if found is None or found.num_processes == 1:
        return
    cluster.connect(
        found,
        connect_timeout=config.connect_timeout,
        heartbeat_timeout=config.heartbeat_timeout,
    )
    peers.watch(config.heartbeat_timeout)
