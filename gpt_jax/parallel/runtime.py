"""What is set once for a process, before the first computation."""

import dataclasses
import os
import pathlib

import jax


@dataclasses.dataclass(slots=True, kw_only=True)
class RuntimeConfig:
    """The process around the program."""

    compilation_cache: bool = True  # keep compiled programs in the user's cache folder


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
