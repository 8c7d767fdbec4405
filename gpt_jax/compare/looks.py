"""Repeated tests while seeds are added: corrected if planned, refused otherwise.

Testing after each new seed until p < 0.05 calls equal configs different far more often than 5 % of
the time. The results file of a comparison remembers the seeds of each test. With `looks` tests
planned before the first, each one is made at the level divided by `looks` (Bonferroni).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_jax.compare.statistics import LEVEL
from gpt_jax.errors import UserError


def next_looks(
    earlier: Mapping[str, Any] | None, seeds: Sequence[int], *, looks: int, path: Any
) -> list[list[int]]:
    """Returns the seeds of each test including this one; the same seeds again are no new test.

    Raises:
        UserError: more tests than planned before the first.
    """
    seeds = sorted(seeds)
    if earlier is None:
        return [seeds]
    if earlier['looks'] != looks:
        raise UserError(
            f'{path}: {earlier["looks"]} tests were planned before the first, and --looks={looks} '
            f'is another plan; give --looks={earlier["looks"]}'
        )
    tested = earlier['tested_seeds']
    if seeds in tested:
        return tested
    if len(tested) >= looks:
        raise UserError(
            f'{path}: these configs were already tested with seeds {tested[-1]}, and another test '
            'with other seeds would find differences that are not there; plan several with '
            '--looks before the first, or delete the file to begin a new experiment'
        )
    return [*tested, seeds]


def level_of(looks: int) -> float:
    """Returns the level of one of `looks` planned tests."""
    return LEVEL / looks
