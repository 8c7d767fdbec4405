"""Several processes on this machine that share a study: they run the same command."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from gpt_jax.modes.train import INTERRUPTED, UNFINISHED
from gpt_jax.sweep.study import SharedStudy

POLL_SECONDS = 1.0


def run_jobs(
    argv: Sequence[str],
    *,
    count: int,
    shared: SharedStudy,
    report: Callable[[], None],
) -> int:
    """Starts processes that run the command line `argv` with one job each; returns its exit status.

    Their output goes to `logs/`. Signals are passed on. `report` is called when a trial has ended.
    """
    logs = shared.folder / 'logs'
    logs.mkdir(exist_ok=True)
    paths = [logs / f'{index}.txt' for index in range(count)]
    print(f'{count} processes, output in {logs}', flush=True)
    ended = sum(each.state.is_finished for each in shared.attempts())
    with _started([*argv, '--jobs', '1'], paths) as (workers, signals):
        while any(worker.poll() is None for worker in workers):
            before, ended = ended, sum(each.state.is_finished for each in shared.attempts())
            if ended > before:
                report()
            time.sleep(POLL_SECONDS)
    if signals:
        return INTERRUPTED if signals[0] == signal.SIGINT else UNFINISHED
    statuses = [worker.returncode for worker in workers]
    for status, path in zip(statuses, paths, strict=True):
        if status:
            print(f'a process ended with status {status}: {_last_line(path)} (see {path})')
    # The others did what a lost process left, if one of them reached the end.
    return 0 if 0 in statuses else next((status for status in statuses if status > 0), 1)


@contextlib.contextmanager
def _started(
    arguments: Sequence[str], logs: Sequence[pathlib.Path]
) -> Iterator[tuple[list[subprocess.Popen], list[int]]]:
    """Starts a process for each log; yields them, and the signals that they were passed on."""
    command = [sys.executable, '-m', 'gpt_jax.sweep', *arguments]
    workers, signals = [], []

    def forward(number: int, _) -> None:
        signals.append(number)
        for worker in workers:
            worker.send_signal(number)  # nothing where it has ended

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, forward))
        for log in logs:
            if signals:
                break
            file = stack.enter_context(open(log, 'a', encoding='utf-8'))
            # In a group of its own; otherwise the terminal sends it Ctrl-C, too.
            worker = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0
            )
            workers.append(worker)
        try:
            yield workers, signals
        except BaseException:  # as of a storage that is gone: each saves its trial and ends
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.wait()
            raise


def _last_line(path: pathlib.Path) -> str:
    lines = path.read_text(encoding='utf-8', errors='replace').split('\n')
    return next((line for line in reversed(lines) if line.strip()), 'no output')
