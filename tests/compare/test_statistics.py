"""The verdicts are right as often as they claim, on simulated losses."""

import math

import numpy as np
import pytest
from scipy import stats

from gpt_jax.compare.statistics import (
    Verdict,
    adjust,
    decide,
    measure_pairs,
    pairs_needed,
    power,
)

DRAWS, SEEDS, NOISE = 1000, 5, 0.004


def simulate(difference, *, margin=0.01):
    """Returns the verdict of each draw: seeds share their data order, so their losses correlate."""
    random = np.random.default_rng(0)
    shared = random.normal(3.2, 0.02, (DRAWS, SEEDS))
    own = random.normal(0, NOISE / math.sqrt(2), (2, DRAWS, SEEDS))
    baseline, candidate = shared + own[0], shared + own[1] + difference
    measured = [measure_pairs(row, margin=margin) for row in candidate - baseline]
    return [decide(each.p_difference, each.p_equivalence) for each in measured]


def test_equal_configs_are_rarely_called_different():
    assert 30 <= simulate(0).count(Verdict.REAL) <= 73  # the 99.9 % band around 5 %


def test_a_difference_of_two_deviations_is_found_as_often_as_predicted():
    found = simulate(2 * NOISE).count(Verdict.REAL) / DRAWS
    assert abs(found - 0.91) <= 0.03
    assert abs(power(2 * NOISE, noise=NOISE, pairs=SEEDS) - 0.91) < 0.005


def test_a_difference_of_the_margin_is_rarely_called_not_real():
    assert simulate(0.002, margin=0.002).count(Verdict.NOT_REAL) / DRAWS <= 0.073


def test_small_and_equal_differences_are_not_real_with_a_wide_margin():
    assert simulate(0).count(Verdict.NOT_REAL) > 0.8 * DRAWS
    assert Verdict.NOT_REAL not in simulate(0, margin=0.0001)


def test_the_t_test_is_scipys():
    differences = [0.01, 0.02, -0.005, 0.012]
    measured, expected = measure_pairs(differences, margin=0.01), stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval()
    assert measured.p_difference == pytest.approx(expected.pvalue)
    assert (measured.low, measured.high) == pytest.approx((interval.low, interval.high))


def test_equivalence_is_the_larger_of_two_one_sided_tests():
    differences = np.array([0.001, 0.002, -0.0005, 0.0012])
    below = stats.ttest_1samp(differences, -0.003, alternative='greater').pvalue
    above = stats.ttest_1samp(differences, 0.003, alternative='less').pvalue
    measured = measure_pairs(differences, margin=0.003)
    assert measured.p_equivalence == pytest.approx(max(below, above))


@pytest.mark.parametrize('difference', [0.0, 0.02])
def test_differences_without_noise(difference):
    measured = measure_pairs([difference] * 3, margin=0.01)
    verdict = decide(measured.p_difference, measured.p_equivalence)
    assert verdict == (Verdict.REAL if difference else Verdict.NOT_REAL)


def test_one_pair_is_undecided():
    measured = measure_pairs([0.5], margin=0.01)
    assert decide(measured.p_difference, measured.p_equivalence) == Verdict.UNDECIDED


def test_adjusted_p_values():
    assert adjust([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust([0.9, math.nan, 0.6])[0] == 1
    assert math.isnan(adjust([0.9, math.nan])[1])


@pytest.mark.parametrize('difference', [0.0001, 0.002, 0.005, 0.05])
def test_the_pairs_needed_are_the_least(difference):
    needed = pairs_needed(difference, noise=NOISE)
    assert power(difference, noise=NOISE, pairs=needed) >= 0.8
    assert needed == 2 or power(difference, noise=NOISE, pairs=needed - 1) < 0.8


def test_nothing_finds_a_difference_of_zero():
    assert pairs_needed(0.0, noise=NOISE) is None
