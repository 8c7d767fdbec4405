"""The command line of sweeps: `python -m gpt_jax.sweep experiments/<slug>/sweep.py`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt_jax.errors import UserError

try:
    import optuna  # noqa: F401
except ImportError:
    sys.exit("error: sweeps need Optuna; pip install -e '.[sweep]'")

from gpt_jax.modes import members
from gpt_jax.modes.train import INTERRUPTED
from gpt_jax.parallel import runtime
from gpt_jax.sweep import jobs, results
from gpt_jax.sweep.definition import load_sweep, locate
from gpt_jax.sweep.storage import HEARTBEAT_SECONDS, explain_errors
from gpt_jax.sweep.study import SharedStudy
from gpt_jax.sweep.worker import Stopped, run_trials


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message} (see --help)')


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    try:
        return _run(_parse(argv), argv)
    except (UserError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print('stopped; the same command goes on from there', file=sys.stderr)
        return stop.status if isinstance(stop, Stopped) else INTERRUPTED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog='python -m gpt_jax.sweep',
        description='Runs the trials of a sweep file. The same command again goes on, also in '
        'parallel, and on any number of machines with one --storage.',
    )
    parser.add_argument(
        'file',
        metavar='FILE.py[:NAME]',
        help='a sweep file, and the name of one of its sweeps (default: sweep)',
    )
    parser.add_argument(
        '--trials', type=int, help='in all; default: the grid, or as the sweep file says'
    )
    parser.add_argument('--jobs', type=int, default=1, help='processes on this machine')
    parser.add_argument(
        '--members',
        default=members.AUTO,
        help='trials of a process that train together in one program, if they differ in numbers '
        'only; auto: where that is faster (default: %(default)s)',
    )
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
        '--folder',
        type=pathlib.Path,
        help="of workdirs and results; default: the file's, with NAME a folder in it",
    )
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    for name in ('trials', 'jobs', 'heartbeat'):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f'--{name}={value} must be at least 1')
    runtime.allow_open_files()
    runtime.check_xla_flags()
    path, name = locate(arguments.file)
    sweep = load_sweep(path, name)
    shared = SharedStudy(
        sweep,
        folder=arguments.folder or (path.parent if name == 'sweep' else path.parent / name),
        storage=arguments.storage,
        heartbeat=arguments.heartbeat,
    )
    planned = len(sweep.points()) or sweep.trials
    trials = arguments.trials or planned

    def report() -> None:
        found = results.collect(shared)
        results.write(shared, found)
        print(results.format_progress(found, trials=trials), flush=True)

    status = 0
    with explain_errors(shared.spec):
        try:
            if arguments.jobs == 1:
                most_members = members.count_members(arguments.members)
                run_trials(shared, trials=trials, report=report, most_members=most_members)
            else:
                status = jobs.run_jobs(
                    argv,
                    count=arguments.jobs,
                    shared=shared,
                    report=report,
                )
        except UserError as error:
            raise UserError(f'{path}: {error}') from error
        finally:
            written = results.write_all(shared)
    if (answer := results.answer(shared, trials=max(trials, planned))) is not None:
        print(results.format_answer(answer))
    print(f'results in {", ".join(map(str, written))}')
    if status:
        print('stopped; the same command goes on from there', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
