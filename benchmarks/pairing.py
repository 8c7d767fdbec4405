"""Two sides measured in turns, so that other work on a shared machine meets both alike.

Imports nothing but the standard library: a side may run under another Python.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

RESULT = 'RESULT '  # begins the lines of a worker's output that are answers
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def usable_cores() -> int:
    """Cores that this process may use, which is not always all of them."""
    return len(os.sched_getaffinity(0))


def describe_host() -> str:
    """The system, the usable cores, and the load before anything is measured."""
    return f'{platform.platform()}, {usable_cores()} CPUs, load {os.getloadavg()[0]:.1f}'


def busy_seconds() -> float:
    """CPU seconds that the whole machine has worked since it started, summed over its cores."""
    with open('/proc/stat') as stat:
        ticks = [int(field) for field in stat.readline().split()[1:]]
    user, nice, system, _, _, irq, softirq, *_ = ticks
    return (user + nice + system + irq + softirq) / os.sysconf('SC_CLK_TCK')


def turns(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Each round's order of the sides: who begins alternates."""
    for index in range(rounds):
        yield list(names)[:: 1 if index % 2 else -1]


def describe_ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of the rounds' ratios ours / theirs, and their range."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f'ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


def print_result(value: Any) -> None:
    """The answer of a worker."""
    print(RESULT + json.dumps(value), flush=True)


def read_result(output: Iterator[str]) -> Any:
    """The next answer among the lines that a worker prints; None if there is none."""
    line = next((line for line in output if line.startswith(RESULT)), None)
    return None if line is None else json.loads(line[len(RESULT) :])


class Worker:
    """A process that stays and answers requests, a line of JSON each; see `serve`."""

    def __init__(self, name: str, command: Sequence[str], *, env: dict[str, str]):
        """Starts it, with `env` besides this process's environment."""
        self._name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | env,
        )

    def __enter__(self) -> 'Worker':
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: Any) -> Any:
        """Sends a request and waits for its answer."""
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            answer = None
        else:
            answer = read_result(self._process.stdout)
        if answer is None:
            status = self._process.wait()
            raise SystemExit(f'the worker of {self._name} ended with status {status}')
        return answer


def serve(make: Callable[[Any], tuple[Any, Callable[[Any], Any]]]) -> None:
    """A worker's life: `make` takes the first request; the function it returns, all others."""
    requests = map(json.loads, sys.stdin)
    first, answer = make(next(requests))
    print_result(first)
    for request in requests:
        print_result(answer(request))
