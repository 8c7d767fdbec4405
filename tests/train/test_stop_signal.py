"""The first signal is remembered, the second acts."""

import signal
import subprocess
import sys

from gpt_jax.train.stop_signal import StopSignal
from tests.command_line import ROOT

TWICE = """
import os, signal
from gpt_jax.train.stop_signal import StopSignal
with StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.received.name, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print('still here', flush=True)
"""


def test_the_first_is_remembered_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_sigterm_ends_at_once():
    done = subprocess.run([sys.executable, '-c', TWICE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout.split()[-1] == 'SIGTERM', done.stdout


def test_a_closed_terminal_stops_unless_nohup_ignores_it():
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.received is signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
