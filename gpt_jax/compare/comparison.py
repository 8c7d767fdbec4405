"""Candidates against a baseline, in numbers."""

import dataclasses
import math
from collections.abc import Sequence

from gpt_jax.compare.runs import Metric, Side, check_seeds
from gpt_jax.compare.statistics import (
    LEVEL,
    Paired,
    Verdict,
    adjust,
    decide,
    measure_pairs,
    pairs_needed,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One candidate against the baseline."""

    name: str
    baseline: str
    verdict: Verdict
    differences: dict[int, float]  # by the baseline's seed; without pairs that diverged
    paired: Paired
    p_difference: float  # adjusted for the number of candidates; NaN: not tested
    p_equivalence: float
    diverged: dict[str, list[int]]  # seeds by side
    pairs_needed: int | None  # to find a difference of the margin; None: not known or too many
    steps_worth: float  # steps that the better one saves; negative: the baseline; NaN: not known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """When the runs of a side reached the target; NaN for one that never did."""

    steps: dict[int, float]  # by seed
    seconds: dict[int, float]
    last: float  # mean of the last values; NaN: all diverged
    last_step: int  # 0: all diverged

    @property
    def never(self) -> int:
        """The number of runs that never reached it."""
        return sum(map(math.isnan, self.steps.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """All sides and comparisons."""

    metric: Metric
    margin: float
    level: float
    target: float  # NaN: no run of the baseline has a last value
    reached: dict[str, Reached]  # by side
    comparisons: list[Comparison]


def compare(
    sides: Sequence[Side],
    *,
    metric: Metric,
    margin: float,
    level: float = LEVEL,
    target: float | None = None,
) -> Results:
    """Compares each side with the first; p values are adjusted for their number.

    The default target is the last value of the baseline's worst run, so all its runs reach it.

    Raises:
        UserError: the runs cannot be paired.
    """
    baseline, *candidates = sides
    if target is None:
        last = [curve.values[-1] for curve in baseline.finished]
        target = float(max(last, key=metric.cost, default=math.nan))
    measured = [
        _measure(baseline, each, metric=metric, margin=margin, level=level) for each in candidates
    ]
    real = adjust([each.p_difference for each in measured])
    equal = adjust([each.p_equivalence for each in measured])
    comparisons = [
        _conclude(each, p, q, level=level) for each, p, q in zip(measured, real, equal, strict=True)
    ]
    return Results(
        metric=metric,
        margin=margin,
        level=level,
        target=target,
        reached={side.name: _reach(side, target, metric) for side in sides},
        comparisons=comparisons,
    )


def _measure(
    baseline: Side, candidate: Side, *, metric: Metric, margin: float, level: float
) -> Comparison:
    """Measures one candidate, with p values of its own; NaN where nothing is to be tested."""
    check_seeds(baseline, candidate)
    pairs = {
        seed: (ours, theirs)
        for (seed, ours), theirs in zip(
            baseline.curves.items(), candidate.curves.values(), strict=True
        )
        if ours and theirs
    }
    differences = {
        seed: float(theirs.values[-1] - ours.values[-1]) for seed, (ours, theirs) in pairs.items()
    }
    paired = measure_pairs([*differences.values()], margin=margin, level=level)
    diverged = {side.name: side.diverged for side in (baseline, candidate) if side.diverged}
    verdict = Verdict.UNDECIDED
    if diverged:
        verdict = Verdict.DIVERGED
    elif all(ours.equals(theirs) for ours, theirs in pairs.values()):
        verdict = Verdict.IDENTICAL
    tested = verdict is Verdict.UNDECIDED
    return Comparison(
        name=candidate.name,
        baseline=baseline.name,
        verdict=verdict,
        differences=differences,
        paired=paired,
        p_difference=paired.p_difference if tested else math.nan,
        p_equivalence=paired.p_equivalence if tested else math.nan,
        diverged=diverged,
        pairs_needed=pairs_needed(margin, noise=paired.noise, level=level)
        if paired.noise > 0
        else None,
        steps_worth=_steps_worth(baseline, candidate, metric),
    )


def _conclude(
    measured: Comparison, p_difference: float, p_equivalence: float, *, level: float
) -> Comparison:
    """Returns the comparison with adjusted p values, and the verdict if it is a test's."""
    verdict = measured.verdict
    if verdict is Verdict.UNDECIDED:
        verdict = decide(p_difference, p_equivalence, level=level)
    return dataclasses.replace(
        measured, verdict=verdict, p_difference=p_difference, p_equivalence=p_equivalence
    )


def _steps_worth(baseline: Side, candidate: Side, metric: Metric) -> float:
    """Returns the steps before its end at which the better mean curve has the other's last value.

    Negative if the baseline is the better one.
    """
    if not (baseline.finished and candidate.finished):
        return math.nan
    theirs, ours = baseline.mean_curve(), candidate.mean_curve()
    candidate_wins = metric.cost(ours.values[-1]) <= metric.cost(theirs.values[-1])
    better, worse = (ours, theirs) if candidate_wins else (theirs, ours)
    saved = float(better.steps[-1]) - better.reach(worse.values[-1], metric)[0]
    return saved if candidate_wins else -saved


def _reach(side: Side, target: float, metric: Metric) -> Reached:
    reached = {
        seed: curve.reach(target, metric) if curve else (math.nan, math.nan)
        for seed, curve in side.curves.items()
    }
    mean = side.mean_curve() if side.finished else None
    return Reached(
        steps={seed: steps for seed, (steps, _) in reached.items()},
        seconds={seed: seconds for seed, (_, seconds) in reached.items()},
        last=float(mean.values[-1]) if mean else math.nan,
        last_step=int(mean.steps[-1]) if mean else 0,
    )
