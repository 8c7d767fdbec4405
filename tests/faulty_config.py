"""The tiny config, in a process that breaks on a signal, heartbeats and all else alive.

From SIGUSR1 on it stands still; SIGUSR2 raises an error. Python runs the handlers between two lines
of the main thread.
"""

import signal
import time

from gpt_jax.config import RunConfig
from tests import tiny_config


def stand_still(*_) -> None:
    time.sleep(600)


def raise_error(*_) -> None:
    raise RuntimeError('broken')


def get_config(variant: str = '') -> RunConfig:
    signal.signal(signal.SIGUSR1, stand_still)
    signal.signal(signal.SIGUSR2, raise_error)
    return tiny_config.get_config(variant)
