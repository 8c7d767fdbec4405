"""What is set once for a process, before the first computation."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from gpt_jax.config_tree import check_domains, whole
from gpt_jax.parallel import cluster, peers


def seconds(default: int) -> Any:
    """Declares a knob that takes a time to wait."""
    return whole(default, low=1, high=1_000_000)


@dataclasses.dataclass(slots=True, kw_only=True)
class RuntimeConfig:
    """The process around the program."""

    compilation_cache: bool = True  # keep compiled programs in the user's cache folder
    connect_timeout: int = seconds(300)  # to wait for all processes of a run at its start
    heartbeat_timeout: int = seconds(10)  # of silence after which a process counts as lost


def cache_folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/gpt_jax`, by default `~/.cache/gpt_jax`."""
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(root) / 'gpt_jax'


def initialize(config: RuntimeConfig) -> None:
    """Prepares JAX for a run. A cache that the user configured through JAX itself is kept."""
    if config.compilation_cache and not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'compiled'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def join(given: Mapping[str, str], config: RuntimeConfig) -> None:
    """Joins the other processes of the run, if flags or the environment name any.

    Must come before anything that starts a backend. From then on this process ends when another
    one is lost.

    Args:
      given: the flags of `cluster.FLAGS`, '' where absent.

    Raises:
        UserError: what names the processes is incomplete, or they do not find each other.
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
