"""A check that the machine's memory can hold a training state, before it is allocated."""

import os
from typing import Any

import jax

from gpt_jax.config import RunConfig
from gpt_jax.errors import UserError
from gpt_jax.telemetry.chips import GIB
from gpt_jax.train.state import plan_beginning


def check_host_memory(config: RunConfig, state: Any = None) -> None:
    """Rejects a training state that does not fit a machine without accelerators.

    Args:
      config: a finalized config.
      state: its abstract training state; None: derived from `config`.

    Raises:
        UserError: the parameters, the optimizer state and a batch exceed the physical memory.
    """
    if jax.default_backend() != 'cpu' or jax.process_count() > 1:
        return
    state = plan_beginning(config).state if state is None else state
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed += 4 * config.train.batch_size * config.model.max_seq_len
    available = physical_memory()
    if needed > available:
        raise UserError(
            f'parameters, optimizer state and a batch need {needed / GIB:,.1f} GiB, this machine '
            f'has {available / GIB:,.1f} GiB of memory; lower config.model.d_model, num_layers, '
            f'd_ff, vocab_size or max_seq_len, config.lora.rank or config.train.batch_size'
        )


def physical_memory() -> int:
    """Returns the bytes of RAM of this machine."""
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
