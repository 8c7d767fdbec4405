"""A process that makes no steps ends with its stacks; one that does is left alone."""

import subprocess
import sys
import time

from gpt_jax.parallel.peers import LOST
from gpt_jax.train.watchdog import Watchdog
from tests.command_line import ROOT

STALLED = """
import time
from gpt_jax.train.watchdog import Watchdog
def stand_still():
    time.sleep(60)
with Watchdog(2.0) as watchdog:
    watchdog.beat()
    stand_still()
"""


def test_a_stall_ends_with_the_stacks():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-c', STALLED], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == LOST
    assert time.monotonic() - began < 40
    assert 'error: no step for 2 s (config.train.step_timeout)' in done.stderr
    assert 'in stand_still' in done.stderr


def test_beats_keep_it_quiet():
    with Watchdog(1.5) as watchdog:
        for _ in range(10):
            time.sleep(0.25)
            watchdog.beat()
    time.sleep(2.2)  # and so does the end: otherwise this process is gone


def test_what_is_no_step_may_take_longer():
    with Watchdog(0.2) as watchdog, watchdog.patient():
        time.sleep(0.6)  # otherwise this process is gone


def test_a_stall_in_what_is_no_step_ends_too():
    script = STALLED.replace(
        '    stand_still()', '    with watchdog.patient():\n        stand_still()'
    )
    script = script.replace('Watchdog(2.0)', 'Watchdog(0.1)')
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == LOST
    assert 'error: no step for 2 s (config.train.step_timeout times 20)' in done.stderr


def test_off():
    with Watchdog(0.0) as watchdog:
        watchdog.beat()
        time.sleep(0.1)
