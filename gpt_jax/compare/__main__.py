"""The command line: python -m gpt_jax.compare A B [C …]."""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt_jax import files, object_store
from gpt_jax.compare.comparison import compare
from gpt_jax.compare.looks import level_of, record_tests
from gpt_jax.compare.plot import plot_differences
from gpt_jax.compare.report import format_results, to_json
from gpt_jax.compare.runs import Metric, check_comparable, read_side
from gpt_jax.compare.sides import is_override, plan_sides
from gpt_jax.compare.training import train_missing
from gpt_jax.errors import UserError
from gpt_jax.modes import members
from gpt_jax.modes.train import INTERRUPTED
from gpt_jax.parallel import runtime

DESCRIPTION = """Is one config better than another, and how sure is that?

Trains each side with several seeds, or reads finished runs, and compares the others with the
first, seed by seed. What is finished is not trained again; the same command goes on."""
EXAMPLES = """examples:
  python -m gpt_jax.compare configs/a.py configs/b.py:variant --seeds 5
  python -m gpt_jax.compare --config configs/quickstart.py --config.train.num_steps=300 \\
      muon= adamw='--config.optimizer=adamw --config.optimizer.learning_rate=3e-3'
  python -m gpt_jax.compare runs/compare/muon runs/compare/adamw"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message} (see --help)')


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    try:
        return _run(argv)
    except (UserError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        return INTERRUPTED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog='python -m gpt_jax.compare',
        usage='%(prog)s SIDE SIDE [SIDE …] [--seeds N] [--margin M] [--config.KEY=VALUE …]',
        description=DESCRIPTION,
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        'sides',
        nargs='+',
        metavar='SIDE',
        help='[NAME=]FILE.py[:variant] [--config.KEY=VALUE …] as one argument, without FILE.py if '
        '--config names it; or [NAME=]FOLDER of finished runs, one per seed; the first is the '
        'baseline',
    )
    add('--config', default='', metavar='FILE.py', help='config of sides that name none')
    add('--seeds', type=int, default=5, help='per side, from config.seed on (default: 5)')
    add('--margin', type=float, default=0.01, help='a smaller difference is none (default: 0.01)')
    add('--metric', default='eval/loss', help='column of metrics.jsonl (default: eval/loss)')
    add('--direction', choices=['minimize', 'maximize'], default='minimize', help='of the metric')
    add('--target', type=float, help='of the metric, to time (default: what the baseline reaches)')
    add('--looks', type=int, default=1, help='planned tests while seeds are added (default: 1)')
    add(
        '--members',
        default=members.AUTO,
        help='runs that train together in one program, if they differ in numbers only; auto: where '
        'that is faster (default: %(default)s)',
    )
    add(
        '--root',
        default='runs/compare',
        help='the runs are in ROOT/NAME/seed_N (default: %(default)s)',
    )
    add('--out', metavar='FILE.json', help='for all numbers')
    add('--plot', metavar='FILE.png', help='for a picture of the differences of each pair')
    # argparse would take what follows an unknown flag as the end of the sides.
    own = [argument for argument in argv if not is_override(argument)]
    flags = parser.parse_intermixed_args(own)
    flags.overrides = [argument for argument in argv if is_override(argument)]
    return flags


def _run(argv: Sequence[str]) -> int:
    flags = _parse(argv)
    if len(flags.sides) < 2:
        raise UserError('name at least two sides to compare (see --help)')
    for name in ('seeds', 'looks'):
        if getattr(flags, name) < 1:
            raise UserError(f'--{name}={getattr(flags, name)} must be at least 1')
    if not 0 < flags.margin < math.inf:
        raise UserError(f'--margin={flags.margin} must be above 0')
    if flags.target is not None and not math.isfinite(flags.target):
        raise UserError(f'--target={flags.target} must be a number')
    if not flags.root:
        raise UserError('--root needs a folder')
    if flags.plot and not flags.plot.endswith('.png'):
        raise UserError(f'--plot={flags.plot} must end in .png')
    paths = {
        key: object_store.to_path(path, key=f'--{key}')
        for key in ('out', 'plot')
        if (path := getattr(flags, key))
    }
    for key, path in paths.items():
        files.check_writable(path, key=f'--{key}')  # before the work
    runtime.allow_open_files()
    runtime.check_xla_flags()
    most_members = members.count_members(flags.members)
    plans = plan_sides(
        flags.sides,
        config=flags.config,
        overrides=flags.overrides,
        seeds=flags.seeds,
        root=object_store.to_path(flags.root, key='--root'),
    )
    check_comparable({plan.name: plan.config for plan in plans})
    # Seed by seed, so that an interrupted comparison has whole pairs.
    runs = itertools.chain.from_iterable(zip(*(plan.runs for plan in plans), strict=True))
    if status := train_missing([*runs], most_members=most_members):
        print('stopped; the same command goes on from there')
        return status
    metric = Metric(flags.metric, maximize=flags.direction == 'maximize')
    sides = [read_side(plan, metric) for plan in plans]
    results = compare(
        sides,
        metric=metric,
        margin=flags.margin,
        level=level_of(flags.looks),
        target=flags.target,
    )
    tested = [
        (sides[0], side)
        for side, each in zip(sides[1:], results.comparisons, strict=True)
        if not math.isnan(each.p_difference)
    ]
    record_tests(tested, looks=flags.looks)
    print(format_results(results))
    if flags.out:
        files.write_json(paths['out'], to_json(results))
        print(f'\nwritten to {flags.out}')
    if flags.plot:
        plot_differences(results, paths['plot'])
        print(f'\ndrawn in {flags.plot}')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
