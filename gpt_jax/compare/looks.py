"""Repeated tests while seeds are added: corrected if planned, refused otherwise.

Testing after each new seed until p < 0.05 calls equal configs different far more often than 5 % of
the time. A file in a side's folder remembers the seeds of each test with another side. With `looks`
tests planned before the first, each one is made at the level divided by `looks` (Bonferroni).
"""

import os
from collections.abc import Sequence

from gpt_jax import files
from gpt_jax.compare.runs import Side
from gpt_jax.compare.statistics import LEVEL
from gpt_jax.errors import UserError

RECORD = 'compared.json'


def level_of(looks: int) -> float:
    """Returns the level of one of `looks` planned tests."""
    return LEVEL / looks


def record_tests(pairs: Sequence[tuple[Side, Side]], *, looks: int) -> None:
    """Records a test of each pair of sides; the same seeds again are no new test.

    Raises:
        UserError: a pair has more tests than planned before the first; nothing is recorded.
    """
    records = {}
    for pair in pairs:
        # Sorted, so that the same comparison the other way round is not a new experiment.
        first, second = sorted(pair, key=lambda side: os.path.abspath(side.folder))
        path = first.folder / RECORD
        if path not in records:
            records[path] = files.read_json(path) if path.is_file() else {}
        partner = os.path.relpath(second.folder, first.folder)
        earlier = records[path].get(partner, {'looks': looks, 'tests': []})
        records[path][partner] = _add(
            earlier, [[*first.curves], [*second.curves]], looks=looks, path=path
        )
    for path, record in records.items():
        files.write_json(path, record)


def _add(earlier: dict, seeds: list[list[int]], *, looks: int, path: os.PathLike) -> dict:
    if earlier['looks'] != looks:
        raise UserError(
            f'{path}: {earlier["looks"]} tests were planned before the first, and --looks={looks} '
            f'is another plan; give --looks={earlier["looks"]}'
        )
    tests = earlier['tests']
    if seeds in tests:
        return earlier
    if len(tests) >= looks:
        raise UserError(
            f'{path}: these sides were already tested with the seeds {tests[-1][0]}, and another '
            'test that adds seeds would find differences that are not there; plan several with '
            '--looks before the first, or begin anew with new seeds in another --root'
        )
    return {'looks': looks, 'tests': [*tests, seeds]}
