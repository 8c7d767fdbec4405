"""Warnings about a run, each by a rule that is stated with it."""

import collections
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from gpt_jax.report.curve import Curve
from gpt_jax.report.recorded_run import WAIT_SHARE, RecordedRun

WINDOW, LEAST_ROWS = 25, 10  # rows of the running median, and before the first spike
SPIKE_DEVIATIONS, SPIKE_SHARE = 6.0, 0.05  # above the running median
WAIT_LIMIT = 0.1  # of the time
SLOWER = 0.7  # of the earlier speed
OVERFIT_SHARE = 0.01  # above the lowest validation loss
TO_NORMAL = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


@dataclasses.dataclass(frozen=True)
class Finding:
    """A warning about a run; `steps` are the first and the last that it is about."""

    kind: str
    text: str
    steps: tuple[int, int] | None = None


def find_spikes(run: RecordedRun) -> Iterator[Finding]:
    """Yields the spikes of the training loss, each with its highest value."""
    curve = run.curves.get('train/loss')
    if curve is None:
        return
    for first, last, ended in spikes(curve.finite()):
        part = curve.finite()
        inside = (part.steps >= first) & (part.steps <= last)
        highest = part.values[inside].max()
        before = np.median(part.values[part.steps < first][-WINDOW:])
        text = f'training loss rose from {before:.4g} to {highest:.4g} at {_at(first, last)}'
        yield Finding('loss spike', text + ('' if ended else ' and stayed high'), (first, last))


def spikes(curve: Curve) -> list[tuple[int, int, bool]]:
    """Returns the first and the last step of each spike, and whether the curve came back."""
    usual: collections.deque[float] = collections.deque(maxlen=WINDOW)
    found: list[tuple[int, int, bool]] = []
    inside = False
    for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
        high = False
        if len(usual) >= LEAST_ROWS:
            center = statistics.median(usual)
            spread = TO_NORMAL * statistics.median([abs(each - center) for each in usual])
            limit = center + max(SPIKE_DEVIATIONS * spread, SPIKE_SHARE * abs(center))
            high = value > limit
        if high and inside:
            found[-1] = (found[-1][0], step, False)
        elif high:
            found.append((step, step, False))
        else:
            if inside:
                found[-1] = (*found[-1][:2], True)
            usual.append(value)  # a spike does not raise the median that it is compared with
        inside = high
    return found


def find_non_finite(run: RecordedRun) -> Iterator[Finding]:
    """Yields a warning if rows have a loss that is not finite."""
    curve = run.curves.get('train/loss')
    if curve is None or np.isfinite(curve.values).all():
        return
    steps = curve.steps[~np.isfinite(curve.values)]
    first, last = int(steps[0]), int(steps[-1])
    text = f'training loss was not finite in {len(steps)} of {len(curve)} rows, {_at(first, last)}'
    yield Finding('loss not finite', text, (first, last))


def find_skipped(run: RecordedRun) -> Iterator[Finding]:
    """Yields a warning if steps were skipped."""
    curve = run.curves.get('train/skipped_steps')
    if curve is None or not len(curve := curve.finite()) or curve.values[-1] == 0:
        return
    rises = curve.steps[np.diff(curve.values, prepend=0) > 0]
    first, last = int(rises[0]), int(rises[-1])
    count = int(curve.values[-1])
    what = '1 step was' if count == 1 else f'{count} steps were'
    text = f'{what} skipped; their counter rose at {_at(first, last)}'
    yield Finding('skipped steps', text, (first, last))


def find_slow_input(run: RecordedRun) -> Iterator[Finding]:
    """Yields a warning if the steps waited for data."""
    share = run.typical(WAIT_SHARE)
    if share is not None and share > WAIT_LIMIT:
        yield Finding('slow input', f'steps waited for data in {share:.0%} of their time')


def find_slowing(run: RecordedRun) -> Iterator[Finding]:
    """Yields a warning if the end of the run was slower than its beginning."""
    curve = run.curves.get('train/tokens_per_second')
    if curve is None or len(curve := curve.finite()) < 4 * LEAST_ROWS:
        return
    quarter = len(curve) // 4
    early, late = np.median(curve.values[:quarter]), np.median(curve.values[-quarter:])
    if late < SLOWER * early:
        yield Finding(
            'slowing down', f'throughput fell from {early:,.0f} to {late:,.0f} tokens per second'
        )


def find_overfitting(run: RecordedRun) -> Iterator[Finding]:
    """Yields a warning if the validation loss rose while the training loss fell."""
    evaluated, trained = run.curves.get('eval/loss'), run.curves.get('train/loss')
    if evaluated is None or trained is None:
        return
    evaluated, trained = evaluated.finite(), trained.finite()
    if len(evaluated) < 3 or not len(trained):
        return
    lowest = int(np.argmin(evaluated.values))
    step, best = int(evaluated.steps[lowest]), float(evaluated.values[lowest])
    last_step, last = int(evaluated.steps[-1]), float(evaluated.values[-1])
    if lowest > len(evaluated) - 3 or last < best * (1 + OVERFIT_SHARE):
        return
    before, after = _around(trained, step), _around(trained, last_step)
    if after < before:
        yield Finding(
            'overfitting',
            f'validation loss was lowest at step {step:,} ({best:.4g}) and is {last:.4g} at step '
            f'{last_step:,}, while the training loss fell from {before:.4g} to {after:.4g}',
            (step, last_step),
        )


def _around(curve: Curve, step: int) -> float:
    """Returns the median of the last rows up to a step."""
    values = curve.values[curve.steps <= step][-LEAST_ROWS:]
    return float(np.median(values)) if len(values) else float(curve.values[0])


def _at(first: int, last: int) -> str:
    return f'step {first:,}' if first == last else f'steps {first:,} to {last:,}'


# Kind -> the rule, and what finds it.
RULES: Mapping[str, tuple[str, Callable[[RecordedRun], Iterator[Finding]]]] = {
    'loss not finite': (
        'A row of the training loss is NaN or infinite.',
        find_non_finite,
    ),
    'loss spike': (
        f'The training loss of a row is above the median of the {WINDOW} rows before it by more '
        f'than {SPIKE_DEVIATIONS:g} robust standard deviations (1.4826 x the median absolute '
        f'deviation) and by more than {SPIKE_SHARE:.0%}. Rows of a spike are not part of the '
        f'median. The first {LEAST_ROWS} rows have no spikes.',
        find_spikes,
    ),
    'skipped steps': (
        'A step had a loss, gradient or weights that are not finite, or no token to learn, and '
        'was not applied.',
        find_skipped,
    ),
    'overfitting': (
        f'At least two evaluations after the lowest validation loss, the last one is '
        f'{OVERFIT_SHARE:.0%} or more above it, while the training loss (median of '
        f'{LEAST_ROWS} rows) fell.',
        find_overfitting,
    ),
    'slow input': (
        f'Over the second half of the run, the median share of the time in which steps wait for '
        f'data is above {WAIT_LIMIT:.0%}.',
        find_slow_input,
    ),
    'slowing down': (
        f'The median throughput of the last quarter of the rows is below {SLOWER:.0%} of that of '
        f'the first quarter.',
        find_slowing,
    ),
}


def find_warnings(run: RecordedRun) -> list[Finding]:
    """Returns the warnings about a run, in the order of `RULES`."""
    return [finding for _, find in RULES.values() for finding in find(run)]
