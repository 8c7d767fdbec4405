"""The command line of sweeps: `python -m gpt_jax.sweep experiments/<slug>/sweep.py`."""

import argparse
import contextlib
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from gpt_jax.errors import UserError

try:
    import optuna  # noqa: F401
except ImportError:
    sys.exit("error: sweeps need Optuna; pip install -e '.[sweep]'")

from gpt_jax.modes.train import INTERRUPTED, UNFINISHED
from gpt_jax.parallel import runtime
from gpt_jax.sweep import results
from gpt_jax.sweep.definition import load_sweep
from gpt_jax.sweep.study import HEARTBEAT_SECONDS, SharedStudy
from gpt_jax.sweep.worker import run_trials

POLL_SECONDS = 1.0


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    arguments = _parse(argv)
    try:
        return _run(arguments, argv)
    except (UserError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        return INTERRUPTED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m gpt_jax.sweep',
        description='Runs the trials of a sweep file. The same command again goes on, also in '
        'parallel, and on any number of machines with one --storage.',
    )
    parser.add_argument('file', type=pathlib.Path, help='experiments/<slug>/sweep.py')
    parser.add_argument('--trials', type=int, default=0, help='in all; default: as the file says')
    parser.add_argument('--jobs', type=int, default=1, help='processes on this machine')
    parser.add_argument(
        '--storage',
        default='',
        help='postgresql://…, sqlite:///FILE or the path of a journal file; default: sweep.db in '
        'the folder',
    )
    parser.add_argument(
        '--heartbeat',
        type=int,
        default=HEARTBEAT_SECONDS,
        help='seconds between signs of life of a trial in PostgreSQL; after three without, another '
        'process takes it over (default: %(default)s)',
    )
    parser.add_argument(
        '--folder', type=pathlib.Path, help="of workdirs and results; default: the file's"
    )
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    for name, least in (('trials', 0), ('jobs', 1), ('heartbeat', 1)):
        if getattr(arguments, name) < least:
            raise UserError(f'--{name}={getattr(arguments, name)} must be at least {least}')
    runtime.allow_open_files()
    runtime.check_xla_flags()
    sweep = load_sweep(arguments.file)
    shared = SharedStudy(
        sweep,
        name=arguments.file.resolve().parent.name,
        folder=arguments.folder or arguments.file.parent,
        storage=arguments.storage,
        heartbeat=arguments.heartbeat,
    )
    trials = arguments.trials or len(sweep.points()) or sweep.trials

    def report() -> None:
        results.write(shared)
        table = results.format_progress(shared, trials=trials, jobs=arguments.jobs)
        print(table, flush=True)

    try:
        if arguments.jobs == 1:
            status = run_trials(shared, trials=trials, report=report)
        else:
            status = _run_jobs(shared, argv, jobs=arguments.jobs, report=report)
    finally:
        path = results.write(shared)
    print(f'results in {path}' if status == 0 else 'stopped; the same command goes on from there')
    return status


def _run_jobs(shared: SharedStudy, argv: Sequence[str], *, jobs: int, report) -> int:
    """Starts processes that run this command with one job each, and reports their trials.

    Their output goes to `logs/`. Signals are passed on.
    """
    logs = shared.folder / 'logs'
    logs.mkdir(exist_ok=True)
    command = [sys.executable, '-m', 'gpt_jax.sweep', *argv, '--jobs', '1']
    with contextlib.ExitStack() as stack:
        workers = []
        for index in range(jobs):
            log = stack.enter_context(open(logs / f'{index}.txt', 'a', encoding='utf-8'))
            workers.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
                )
            )

        def forward(number: int, _) -> None:
            for worker in workers:
                if worker.poll() is None:
                    worker.send_signal(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, forward))
        print(f'{jobs} processes, output in {logs}', flush=True)
        ended = -1
        while True:
            alive = [worker for worker in workers if worker.poll() is None]
            states = [tries[-1].state for tries in shared.attempts().values()]
            before, ended = ended, sum(state.is_finished() for state in states)
            if ended != before:
                report()
            if not alive:
                break
            time.sleep(POLL_SECONDS)
    statuses = [worker.returncode for worker in workers]
    for index, status in enumerate(statuses):
        if status not in (0, INTERRUPTED, UNFINISHED):
            print(f'process {index} ended with status {status}; see {logs}/{index}.txt')
    # What a lost process left was done by the others, if one of them reached the end.
    return 0 if 0 in statuses else max(statuses, default=0) or 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
