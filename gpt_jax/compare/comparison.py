"""Candidates against a baseline: a verdict for each, in numbers and in one sentence."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_jax.compare.runs import METRIC, Candidate, check_comparable
from gpt_jax.compare.statistics import (
    LEVEL,
    Paired,
    Verdict,
    adjust,
    decide,
    measure_pairs,
    pairs_needed,
)
from gpt_jax.telemetry.report import format_columns, format_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One candidate against the baseline. Targets are the baseline's mean last loss."""

    name: str
    baseline: str
    verdict: Verdict
    differences: dict[int, float]  # by seed
    paired: Paired
    p_difference: float  # adjusted for the number of candidates
    p_equivalence: float
    margin: float
    pairs_needed: int | None  # to find a difference of the margin
    steps_worth: float  # steps that the better one saves; NaN: not known
    steps_to_target: float  # NaN: not reached
    seconds_to_target: float

    def sentence(self) -> str:
        """Returns the verdict as one plain sentence."""
        word = 'lower' if self.paired.mean < 0 else 'higher'
        size = f'{METRIC} of {self.name} is {abs(self.paired.mean):.4g} {word}'
        if self.verdict == Verdict.IDENTICAL:
            return f'Identical: {self.name} and {self.baseline} have the same losses bit for bit.'
        if self.verdict == Verdict.REAL:
            small = (
                ''
                if self.paired.high > self.margin or self.paired.low < -self.margin
                else (f', though less than {self.margin:g}')
            )
            return f'Real: {size} than of {self.baseline}{small} (p = {self.p_difference:.2g}).'
        if self.verdict == Verdict.NOT_REAL:
            return (
                f'Not real: {self.name} and {self.baseline} differ by less than {self.margin:g} '
                f'(p = {self.p_equivalence:.2g}).'
            )
        if self.paired.pairs < 2:
            return 'Undecided: one seed shows no noise; train at least two.'
        needed = f'{self.pairs_needed} seeds' if self.pairs_needed else 'too many seeds'
        return (
            f'Undecided: the difference lies between {self.paired.low:+.4f} and '
            f'{self.paired.high:+.4f}; to see {self.margin:g} you need {needed}.'
        )

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers; NaN, which JSON lacks, is None."""
        values = dataclasses.asdict(self) | {'sentence': self.sentence()}
        values['paired'] = {key: _or_none(value) for key, value in values['paired'].items()}
        return {key: _or_none(value) for key, value in values.items()}


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _show(value: float, form: str) -> str:
    return '-' if math.isnan(value) else format(value, form)


def compare(
    baseline: Candidate, candidates: Sequence[Candidate], *, margin: float, level: float = LEVEL
) -> list[Comparison]:
    """Compares each candidate with the baseline; p values are adjusted for their number.

    Raises:
        UserError: the runs cannot be paired.
    """
    for candidate in candidates:
        check_comparable(baseline, candidate)
    differences = [
        {
            seed: float(each.runs[seed].losses[-1] - first.losses[-1])
            for seed, first in baseline.runs.items()
        }
        for each in candidates
    ]
    same = [
        all(each.runs[seed].same_losses(first) for seed, first in baseline.runs.items())
        for each in candidates
    ]
    measured = [measure_pairs([*each.values()], margin=margin) for each in differences]
    # Identical runs are not tested, so they do not count in the correction.
    untested = lambda p, skip: math.nan if skip else p  # noqa: E731
    real = adjust([untested(m.p_difference, s) for m, s in zip(measured, same, strict=True)])
    equal = adjust([untested(m.p_equivalence, s) for m, s in zip(measured, same, strict=True)])
    results = []
    for index, candidate in enumerate(candidates):
        paired = measured[index]
        noisy = paired.noise > 0
        steps, seconds = _to_target(candidate, float(baseline.mean_curve()[1][-1]))
        results.append(
            Comparison(
                name=candidate.name,
                baseline=baseline.name,
                verdict=Verdict.IDENTICAL
                if same[index]
                else decide(real[index], equal[index], level=level),
                differences=differences[index],
                paired=paired,
                p_difference=real[index],
                p_equivalence=equal[index],
                margin=margin,
                pairs_needed=pairs_needed(margin, noise=paired.noise, level=level)
                if noisy
                else None,
                steps_worth=_steps_worth(baseline, candidate),
                steps_to_target=steps,
                seconds_to_target=seconds,
            )
        )
    return results


def _to_target(candidate: Candidate, target: float) -> tuple[float, float]:
    """Returns the steps and seconds at which the mean curve first reaches `target`, or NaN."""
    steps, losses, seconds = candidate.mean_curve()
    reached = np.flatnonzero(losses <= target)
    if not len(reached):
        return math.nan, math.nan
    index = int(reached[0])
    if index == 0:
        return float(steps[0]), float(seconds[0])
    part = (losses[index - 1] - target) / (losses[index - 1] - losses[index])
    between = lambda x: float(x[index - 1] + part * (x[index] - x[index - 1]))  # noqa: E731
    return between(steps), between(seconds)


def _steps_worth(baseline: Candidate, candidate: Candidate) -> float:
    """Returns the steps that the candidate saves to reach the baseline's loss; negative: loses."""
    steps, ours, _ = candidate.mean_curve()
    theirs = baseline.mean_curve()[1]
    if ours[-1] <= theirs[-1]:
        return float(steps[-1] - _to_target(candidate, theirs[-1])[0])
    return float(_to_target(baseline, ours[-1])[0] - steps[-1])


def format_comparisons(results: Sequence[Comparison]) -> str:
    """Formats a table that fits 80 columns, the details, and the sentences."""
    first = results[0]
    header = ('', 'difference', '95 % interval', 'noise', 'p', 'verdict')
    rows = [
        (
            each.name,
            f'{each.paired.mean:+.4f}',
            _show(each.paired.low, '+.4f') + ' … ' + _show(each.paired.high, '+.4f'),
            _show(each.paired.noise, '.4f'),
            _show(each.p_difference, '.2g'),
            str(each.verdict),
        )
        for each in results
    ]
    title = f'{METRIC} minus that of {first.baseline}, {first.paired.pairs} seeds'
    details = {
        each.name: f'worth {each.steps_worth:+.0f} steps; reaches the loss of {each.baseline} at '
        f'step {each.steps_to_target:.0f}, {each.seconds_to_target:.3g} s'
        if not math.isnan(each.steps_to_target)
        else f'worth {each.steps_worth:+.0f} steps; does not reach the loss of {each.baseline}'
        for each in results
    }
    parts = [format_columns(title, header, rows), format_table('curves', details)]
    return '\n\n'.join([*parts, '\n'.join(each.sentence() for each in results)])
