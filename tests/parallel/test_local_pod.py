"""The launcher of a local pod: its argument, its statuses, and what becomes of the children."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from gpt_jax.errors import UserError
from gpt_jax.parallel import local_pod


@pytest.mark.parametrize('shape', ['2', '0x2', '2x0', 'x', '2x2x2', '-1x2', '2 x 2', '99999x1'])
def test_wrong_shape(shape):
    with pytest.raises(UserError, match='must be PROCESSESxDEVICES'):
        local_pod.parse(shape)


def _launch(monkeypatch, code: str) -> tuple[int, float]:
    """Launches three processes that run `code` with their number as `i`; status and seconds."""

    def start(argv, environment):
        index = argv[-1].partition('=')[2]
        return subprocess.Popen(
            [sys.executable, '-c', f'import os, signal, sys, time\ni = {index}\n{code}'],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    monkeypatch.setattr(local_pod, '_start', start)
    began = time.monotonic()
    return local_pod.launch('3x1', []), time.monotonic() - began


def test_lines_have_their_process(monkeypatch, capfd):
    code = 'print("a\\nb"); print("c", file=sys.stderr)'
    assert _launch(monkeypatch, code)[0] == 0
    captured = capfd.readouterr()
    assert sorted(captured.out.splitlines()) == sorted(f'[{i}] {x}' for i in range(3) for x in 'ab')
    assert sorted(captured.err.splitlines()) == [f'[{i}] c' for i in range(3)]


@pytest.mark.parametrize(
    ('code', 'status'),
    [
        ('sys.exit(75)', 75),
        ('sys.exit(130)', 130),
        ('sys.exit(2 if i == 1 else 0)', 2),
        ('os.kill(os.getpid(), signal.SIGKILL) if i == 2 else time.sleep(60)', 128 + 9),
    ],
    ids=['saved', 'Ctrl-C', 'one is wrong', 'one is killed'],
)
def test_status(code, status, monkeypatch):
    assert _launch(monkeypatch, code)[0] == status


def test_a_failure_ends_those_that_ignore_it(monkeypatch, capfd):
    monkeypatch.setattr(local_pod, 'GRACE_SECONDS', 0.5)
    code = (
        'signal.signal(signal.SIGTERM, signal.SIG_IGN); '
        'time.sleep(1); sys.exit(3) if i == 0 else time.sleep(60)'
    )
    status, seconds = _launch(monkeypatch, code)
    assert status == 3
    assert seconds < 20
    assert 'error: process 0 ended with status 3; ending the others' in capfd.readouterr().err


def test_signals_are_passed_on(monkeypatch):
    code = (
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n'
        'end = time.monotonic() + 60\n'
        'while time.monotonic() < end: time.sleep(0.1)'
    )
    threading.Timer(3, signal.raise_signal, [signal.SIGTERM]).start()
    status, seconds = _launch(monkeypatch, code)
    assert status == 75
    assert seconds < 30


def test_devices_of_the_children(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8 --xla_dump_to=x')
    flags = local_pod._environment(2)['XLA_FLAGS'].split()
    assert flags.count('--xla_force_host_platform_device_count=2') == 1
    assert not any(flag.endswith('=8') for flag in flags)
    assert '--xla_dump_to=x' in flags
