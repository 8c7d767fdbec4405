"""Tests of paired per-seed differences: significance, equivalence and power.

A difference is the loss of a candidate minus that of the baseline, both trained with one seed.
"""

import dataclasses
import enum
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.05  # rate at which equal configs are called different
POWER = 0.8  # chance to find a difference that `pairs_needed` asks for
MOST_PAIRS = 10_000


class Verdict(enum.StrEnum):
    """The conclusions of a comparison."""

    REAL = 'real'
    NOT_REAL = 'not real'  # the equivalence test shows a difference below the margin
    UNDECIDED = 'undecided'
    IDENTICAL = 'identical'  # bit-identical runs, which are not tested
    DIVERGED = 'diverged'  # nor are sides of which a run has no last value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired:
    """Statistics of paired differences; those that need two pairs are NaN with one."""

    pairs: int
    mean: float
    noise: float  # standard deviation of one difference
    low: float  # interval of the mean at the level, not corrected for several candidates
    high: float
    p_difference: float  # of equal means: two-sided paired t test
    p_equivalence: float  # of a difference of at least the margin: two one-sided t tests


def measure_pairs(differences: Sequence[float], *, margin: float, level: float = LEVEL) -> Paired:
    """Computes the paired t test, its interval, and the equivalence test within `margin`."""
    values = np.asarray(differences, np.float64)
    pairs, mean = len(values), float(values.mean()) if len(values) else math.nan
    if pairs < 2:
        unknown = dict.fromkeys(('noise', 'low', 'high', 'p_difference', 'p_equivalence'), math.nan)
        return Paired(pairs=pairs, mean=mean, **unknown)
    noise = float(values.std(ddof=1))
    error = noise / math.sqrt(pairs)
    half = error * float(stats.t.ppf(1 - level / 2, pairs - 1))
    return Paired(
        pairs=pairs,
        mean=mean,
        noise=noise,
        low=mean - half,
        high=mean + half,
        p_difference=min(1.0, 2 * _upper_tail(abs(mean), error, pairs - 1)),
        p_equivalence=_upper_tail(margin - abs(mean), error, pairs - 1),
    )


def _upper_tail(distance: float, error: float, freedom: int) -> float:
    """Returns the chance that a mean of zero comes out at `distance` or more."""
    if error == 0:  # equal differences: all of them are on one side
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / error, freedom))


def adjust(p_values: Sequence[float]) -> list[float]:
    """Corrects p values for their number (Holm 1979); NaN, a test not made, does not count."""
    p = np.asarray(p_values, np.float64)
    adjusted, largest = p.copy(), 0.0
    tested = [index for index in np.argsort(p) if not math.isnan(p[index])]
    for rank, index in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * float(p[index])))
        adjusted[index] = largest
    return adjusted.tolist()


def decide(p_difference: float, p_equivalence: float, *, level: float = LEVEL) -> Verdict:
    """Returns the verdict for adjusted p values; a NaN leaves it undecided."""
    if p_difference < level:
        return Verdict.REAL
    return Verdict.NOT_REAL if p_equivalence < level else Verdict.UNDECIDED


def power(difference: float, *, noise: float, pairs: int, level: float = LEVEL) -> float:
    """Returns the chance that the paired t test finds `difference` (noncentral t)."""
    if noise == 0:
        return 1.0 if difference else level
    limit = stats.t.ppf(1 - level / 2, pairs - 1)
    shift = abs(difference) / noise * math.sqrt(pairs)
    upper, lower = stats.nct.sf(limit, pairs - 1, shift), stats.nct.cdf(-limit, pairs - 1, shift)
    # scipy returns NaN for a lower tail that is too small to represent.
    return float(np.nan_to_num(upper, nan=1.0) + np.nan_to_num(lower))


def pairs_needed(difference: float, *, noise: float, level: float = LEVEL) -> int | None:
    """Returns the least number of pairs that finds `difference` with a chance of POWER.

    None: more than MOST_PAIRS.
    """
    low, high = 1, 2
    while power(difference, noise=noise, pairs=high, level=level) < POWER:
        low, high = high, 2 * high
        if low > MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(difference, noise=noise, pairs=middle, level=level) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high
