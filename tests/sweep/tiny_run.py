"""A run of a second that may lose its process once, or wait in the middle."""

import contextlib
import os
import pathlib
import signal
import time

from gpt_jax.config import RunConfig
from gpt_jax.train.evaluators import Evaluator, Report
from tests import tiny_config


def get_config(variant: str = '') -> RunConfig:
    config = tiny_config.get_config(variant)
    config.model.num_layers = 1
    config.model.num_heads = 1
    config.model.d_model = 8
    config.model.max_seq_len = 8
    config.model.dropouts.residual = config.model.dropouts.attention = 0.0
    config.train.grad_accumulation = 1
    config.train.ema_decay = 0.0
    config.train.num_steps = 20
    config.train.log_every = 5
    config.train.sinks = ('jsonl',)
    config.eval.every = 5
    config.eval.batches = 1
    config.checkpoint.save_every = 5
    return config


def evaluators(config: RunConfig) -> list[Evaluator]:
    return [
        Evaluator(name='hold', every=10, at_end=False, run=hold),
        Evaluator(name='fault', every=10, at_end=False, run=lose_process),
    ]


def hold(trainer, state) -> Report:
    """Waits while the file HOLD exists."""
    path = os.environ.get('HOLD')
    while path and pathlib.Path(path).exists():
        time.sleep(0.05)
    return Report()


def lose_process(trainer, state) -> Report:
    """Sends this process FAULT_SIGNAL at step 10 if the file FAULT exists, and removes the file."""
    if int(state.step) == 10 and (path := os.environ.get('FAULT')):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            os.kill(os.getpid(), getattr(signal, os.environ.get('FAULT_SIGNAL', 'SIGKILL')))
    return Report()
