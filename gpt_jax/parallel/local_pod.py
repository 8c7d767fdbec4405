"""Launcher of `--local_pod PxD`: a multi-process run on one machine, to test the code of pods.

It starts the same command line in P processes of D CPU devices each. They communicate over gloo on
a loopback port. Each line that they print is prefixed with the process's number.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from gpt_jax.errors import UserError

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL, after the first failure
# Exit statuses that all processes reach together: stopped after saving, and Ctrl-C.
STOPPED = (75, 130)
# Eight CPU devices on two cores reach a collective slowly; XLA would give up after 40 s.
XLA_FLAGS = '--xla_cpu_collective_call_terminate_timeout_seconds=600'
_ROOT = str(pathlib.Path(__file__).parents[2])  # the folder that `gpt_jax` is imported from


def parse(text: str) -> tuple[int, int]:
    """Parses `PxD` to the numbers of processes and devices.

    Raises:
        UserError: `text` has another form, or a number is 0.
    """
    match = re.fullmatch(r'([1-9]\d{0,3})x([1-9]\d{0,3})', text)
    if match is None:
        raise UserError(
            f'--local_pod={text} must be PROCESSESxDEVICES, such as 2x4: two processes of four CPU '
            f'devices each'
        )
    return int(match[1]), int(match[2])


def launch(shape: str, argv: Sequence[str]) -> int:
    """Runs the command line in every process until all end; returns the exit status.

    SIGTERM and Ctrl-C are forwarded to all. When one process fails, the others get SIGTERM, and
    SIGKILL after `GRACE_SECONDS`.

    Args:
      shape: `PxD`.
      argv: the arguments of `gpt_jax.main`, without `--local_pod`.

    Returns:
      0 if all processes return 0; 75 or 130 if they stopped together; otherwise the status of the
      first that failed, 128 + n if signal n killed it.
    """
    count, devices = parse(shape)
    coordinator = f'127.0.0.1:{_free_port()}'
    environment = _environment(devices)
    children = [
        _start([*argv, *_cluster_flags(coordinator, count, index)], environment)
        for index in range(count)
    ]
    threads = [
        threading.Thread(target=_forward, args=(f'[{index}] ', source, target), daemon=True)
        for index, child in enumerate(children)
        for source, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    ]

    def pass_on(number: int, _) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    previous = {
        number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        for thread in threads:
            thread.start()
        return _wait(children)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for thread in threads:
            thread.join()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen]) -> int:
    """Waits for all processes and ends them after a failure. Returns the exit status."""
    failed: int | None = None  # the number of the process that failed first
    deadline = 0.0
    while any(child.poll() is None for child in children):
        time.sleep(0.05)
        if failed is None:
            failed = next((i for i, c in enumerate(children) if _is_failure(c.poll())), None)
            if failed is not None:
                how = _describe(children[failed].returncode)
                print(
                    f'error: process {failed} {how}; ending the others', file=sys.stderr, flush=True
                )
                deadline = time.monotonic() + GRACE_SECONDS
                for child in children:
                    if child.poll() is None:
                        child.terminate()
        elif time.monotonic() > deadline:
            for child in children:
                if child.poll() is None:
                    child.kill()
    statuses = [child.returncode for child in children]
    if failed is None:
        failed = next((i for i, status in enumerate(statuses) if _is_failure(status)), None)
    if failed is not None:
        status = statuses[failed]
        return 128 - status if status < 0 else status
    return max(statuses)


def _is_failure(status: int | None) -> bool:
    return status is not None and status != 0 and status not in STOPPED


def _describe(status: int) -> str:
    if status < 0:
        return f'was killed by {signal.Signals(-status).name}'
    return f'ended with status {status}'


def _start(argv: Sequence[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts a process in its own session: the launcher alone forwards the terminal's Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, '-m', 'gpt_jax.main', *argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _forward(prefix: str, source: IO[bytes], target: IO[str]) -> None:
    """Copies whole lines from `source` to `target`, each with the prefix."""
    with source:
        for line in source:
            text = line.decode(errors='replace').rstrip('\r\n')
            target.write(f'{prefix}{text}\n')
            target.flush()


def _cluster_flags(coordinator: str, count: int, index: int) -> list[str]:
    return [f'--coordinator={coordinator}', f'--num_processes={count}', f'--process_id={index}']


def _environment(devices: int) -> dict[str, str]:
    """Returns this process's environment, set up for that many CPU devices."""
    device_flag = '--xla_force_host_platform_device_count'
    kept = [
        flag
        for flag in os.environ.get('XLA_FLAGS', '').split()
        if flag.partition('=')[0] not in (device_flag, XLA_FLAGS.partition('=')[0])
    ]
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
        'XLA_FLAGS': ' '.join([*kept, f'{device_flag}={devices}', XLA_FLAGS]),
        'PYTHONUNBUFFERED': '1',
        # Import the same package, whatever the working directory.
        'PYTHONPATH': os.pathsep.join(filter(None, [_ROOT, os.environ.get('PYTHONPATH')])),
    }
    environment.pop('JAX_NUM_CPU_DEVICES', None)  # would override the flag
    return environment


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]
