"""The parsed command line, which a mode gets."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags as absl_flags

from gpt_jax.config import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The parsed command line; `run` of a mode takes it and returns the exit status."""

    flags: absl_flags.FlagValues  # of the mode
    config: RunConfig  # not finalized
    workdir: pathlib.Path
    overrides: dict[str, Any]  # the values of `--config.KEY` flags, by key below config
    evaluators: Callable[[RunConfig], list[Any]]  # of the file of --config, from a final config
    # Called by training with each row of metrics, before it goes on; an exception ends the run.
    watch: Callable[[int, Mapping[str, float]], None] = lambda step, row: None
