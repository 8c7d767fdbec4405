"""The command line: python -m gpt_jax.compare A B [C …]."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from gpt_jax import files
from gpt_jax.compare.comparison import compare, format_comparisons
from gpt_jax.compare.looks import level_of, next_looks
from gpt_jax.compare.runs import read_candidate
from gpt_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    try:
        _compare(_parse(argv))
    except (UserError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser('python -m gpt_jax.compare', description=__doc__)
    parser.add_argument('baseline', help='a folder of finished workdirs, one per seed')
    parser.add_argument('candidates', nargs='+', help='such folders, with the same seeds')
    parser.add_argument('--seeds', type=int, default=5, help='planned number of seeds (default 5)')
    parser.add_argument(
        '--margin', type=float, default=0.01, help='a smaller difference is none (default 0.01)'
    )
    parser.add_argument(
        '--looks', type=int, default=1, help='planned tests while seeds are added (default 1)'
    )
    parser.add_argument(
        '--output', help='results file (default: compare_A_B.json beside the baseline)'
    )
    return parser.parse_args(argv)


def _compare(flags: argparse.Namespace) -> None:
    if not flags.margin > 0 or flags.looks < 1:
        raise UserError('--margin must be above 0 and --looks at least 1')
    folders = [pathlib.Path(name) for name in (flags.baseline, *flags.candidates)]
    # Sorted, so that the same comparison the other way round is not a new experiment.
    name = '_'.join(['compare', *sorted(folder.name for folder in folders)]) + '.json'
    path = pathlib.Path(flags.output or folders[0].parent / name)
    baseline, *candidates = map(read_candidate, folders)
    seeds = [*baseline.runs]
    if flags.looks == 1 and len(seeds) != flags.seeds:
        raise UserError(
            f'{folders[0]} has {len(seeds)} seeds, not --seeds={flags.seeds}; the number must be '
            f'chosen before the results are seen: train the others, or say --seeds={len(seeds)}'
        )
    level = level_of(flags.looks)
    # Reads the runs before the record, so that a refused comparison is no test.
    results = compare(baseline, candidates, margin=flags.margin, level=level)
    earlier = files.read_json(path) if path.exists() else None
    looks = next_looks(earlier, seeds, looks=flags.looks, path=path)
    record = {
        'margin': flags.margin,
        'level': level,
        'looks': flags.looks,
        'tested_seeds': looks,
        'results': [each.to_json() for each in results],
    }
    files.write_json(path, record)
    print(format_comparisons(results))
    print(f'written to {path}')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
