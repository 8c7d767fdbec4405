"""The tiny config, in a process that stands still from SIGUSR1 on, heartbeats and all else alive.

Python runs the handler between two lines of the main thread.
"""

import signal
import time

from gpt_jax.config import RunConfig
from tests import tiny_config


def stand_still(*_) -> None:
    time.sleep(600)


def get_config(variant: str = '') -> RunConfig:
    signal.signal(signal.SIGUSR1, stand_still)
    return tiny_config.get_config(variant)
