"""Runs of several real processes on this machine, each with its own output."""

import pathlib
import socket
import time
from collections.abc import Sequence

from gpt_jax.parallel import local_pod
from tests import command_line
from tests.template import Command

# The learning rate does not depend on the number of steps, so that a run can be made in pieces.
ARGUMENTS = (
    f'--config={command_line.TINY}',
    '--config.mesh.data=-1',
    '--config.schedule.kind=constant',
    '--config.train.log_every=1',
    # What makes the program small.
    '--config.train.steps_per_call=1',
    '--config.train.grad_accumulation=1',
    '--config.train.ema_decay=0',
    '--config.model.num_layers=1',
)


class Pod:
    """`count` processes of `devices` CPU devices, started by their flags as on several hosts."""

    def __init__(
        self,
        count: int,
        devices: int,
        *arguments: str,
        each: Sequence[Sequence[str]] | None = None,
        environments: Sequence[dict[str, str]] | None = None,
    ):
        """`each` and `environments`: what a process has besides the others."""
        with socket.socket() as listener:
            listener.bind(('127.0.0.1', 0))
            coordinator = f'127.0.0.1:{listener.getsockname()[1]}'
        self.processes = []
        for index in range(count):
            environment = local_pod._environment(devices)
            environment |= environments[index] if environments else {}
            own = each[index] if each else ()
            flags = local_pod._cluster_flags(coordinator, count, index)
            self.processes.append(Command(*arguments, *own, *flags, environment=environment))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            with process:
                process.wait()

    def output(self, index: int) -> str:
        """Returns the text that a process has printed so far."""
        return self.processes[index].output()

    def wait(self, seconds: float = 240) -> list[int]:
        """The exit statuses, when all have ended."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.wait(max(0.1, deadline - time.monotonic()))
        return [process.returncode for process in self.processes]

    def wait_for_rows(self, workdir: pathlib.Path, count: int, seconds: float = 240) -> None:
        """Returns when the run has written so many rows of metrics."""
        deadline = time.monotonic() + seconds
        path = workdir / 'metrics.jsonl'
        while not (path.exists() and path.read_bytes().count(b'\n') >= count):
            ended = [i for i, process in enumerate(self.processes) if process.poll() is not None]
            assert not ended, '\n'.join(map(self.output, ended))
            assert time.monotonic() < deadline, 'no progress'
            time.sleep(0.02)


def run_pod(shape: str, *arguments: str) -> str:
    """Returns the output of `--local_pod=PxD` for a run that ends well, from forked processes."""
    count, devices = local_pod.parse(shape)
    with Pod(count, devices, *arguments) as pod:
        outputs = [(index, pod.output(index)) for index, status in enumerate(pod.wait())]
        assert {process.returncode for process in pod.processes} == {0}, outputs
    return ''.join(f'[{index}] {line}\n' for index, text in outputs for line in text.splitlines())


def assert_same_numbers(rows: list[dict], expected: list[dict], *, relative: float = 1e-5) -> None:
    """Losses and norms agree, step by step."""
    assert [row['step'] for row in rows] == [row['step'] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            assert abs(row[name] - value) <= relative * abs(value) + 1e-12, (row['step'], name)
