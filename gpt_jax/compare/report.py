"""The results of a comparison as tables, plain sentences and JSON."""

import dataclasses
import math
import shutil
import statistics
import textwrap
from typing import Any

from gpt_jax.compare.comparison import Comparison, Reached, Results
from gpt_jax.compare.statistics import POWER, Verdict
from gpt_jax.telemetry.report import format_columns


def format_results(results: Results) -> str:
    """Formats two tables that fit 80 columns, and one sentence per candidate."""
    columns = shutil.get_terminal_size().columns
    sentences = [textwrap.fill(sentence(each, results), columns) for each in results.comparisons]
    return '\n\n'.join([_format_differences(results), _format_sides(results), *sentences])


def _format_differences(results: Results) -> str:
    first = results.comparisons[0]
    rows = [
        (
            each.name,
            _show(each.paired.mean, '+.4f'),
            _show(each.paired.low, '+.4f') + ' … ' + _show(each.paired.high, '+.4f'),
            _show(each.paired.noise, '.4f'),
            _show(each.p_difference, '.2g'),
            str(each.verdict),
        )
        for each in results.comparisons
    ]
    interval = f'{100 * (1 - results.level):.4g} % interval'
    header = ('', 'difference', interval, 'noise', 'p', 'verdict')
    pairs = max(each.paired.pairs for each in results.comparisons)
    title = f'last {results.metric.name} minus that of {first.baseline}, {pairs} pairs of runs'
    return format_columns(title, header, rows)


def _format_sides(results: Results) -> str:
    rows = [
        (
            name,
            _show(reached.last, '.4f'),
            _median(reached, reached.steps, '.0f'),
            _median(reached, reached.seconds, '.1f'),
            f'{reached.never} of {len(reached.steps)}',
        )
        for name, reached in results.reached.items()
    ]
    title = f'runs up to {results.metric.name} {results.target:.4f}, medians'
    return format_columns(title, ('', 'last mean', 'steps', 'seconds', 'never reached it'), rows)


def _median(reached: Reached, values: dict[int, float], form: str) -> str:
    """Formats the median over all runs, of which those that never reached it are the last."""
    median = statistics.median(math.inf if math.isnan(x) else x for x in values.values())
    return '-' if math.isinf(median) else format(median, form)


def _show(value: float, form: str) -> str:
    return '-' if math.isnan(value) else format(value, form)


def sentence(comparison: Comparison, results: Results) -> str:
    """Returns the verdict as plain sentences."""
    name, baseline, paired = comparison.name, comparison.baseline, comparison.paired
    margin, metric = results.margin, results.metric.name
    match comparison.verdict:
        case Verdict.IDENTICAL:
            return f'Identical: {name} and {baseline} have the same {metric}, bit for bit.'
        case Verdict.DIVERGED:
            return _describe_divergence(comparison, metric)
        case Verdict.REAL:
            word = 'lower' if paired.mean < 0 else 'higher'
            within = max(abs(paired.low), abs(paired.high)) <= margin
            small = f', though by less than {margin:g}' if within else ''
            text = (
                f'Real: {metric} of {name} is {abs(paired.mean):.4g} {word} than of '
                f'{baseline}{small} (p = {comparison.p_difference:.2g}), worth '
                f'{abs(comparison.steps_worth):.1f} steps.'
            )
        case Verdict.NOT_REAL:
            text = (
                f'Not real: {name} and {baseline} differ by less than {margin:g} '
                f'(p = {comparison.p_equivalence:.2g}).'
            )
        case _ if paired.pairs < 2:
            return f'Undecided: one seed of {name} shows no noise; give --seeds=2 or more.'
        case _:
            text = (
                f'Undecided: the difference of {name} and {baseline} lies between '
                f'{paired.low:+.4f} and {paired.high:+.4f}.'
            )
    needed = comparison.pairs_needed
    if paired.noise > 0:
        seeds = f'{needed} seeds' if needed else 'too many seeds'
        text += f' To see {margin:g} with a chance of {POWER:.0%} you need {seeds}.'
    return text


def _describe_divergence(comparison: Comparison, metric: str) -> str:
    runs = ' and '.join(
        f'{len(seeds)} runs of {name} (seeds {", ".join(map(str, seeds))})'
        if len(seeds) > 1
        else f'a run of {name} (seed {seeds[0]})'
        for name, seeds in comparison.diverged.items()
    )
    text = f'Diverged: {runs} ended without a finite {metric}.'
    if pairs := comparison.paired.pairs:
        text += (
            f' The other {pairs} differ by {comparison.paired.mean:+.4f}, but they were not chosen '
            'by chance, so nothing is tested.'
        )
    return text + ' A config that diverges is worse; lower its learning rate to compare it.'


def to_json(results: Results) -> dict[str, Any]:
    """Returns all numbers and the sentences; NaN, which JSON lacks, is None."""
    values = dataclasses.asdict(results)
    for comparison, record in zip(results.comparisons, values['comparisons'], strict=True):
        record['sentence'] = sentence(comparison, results)
    return _without_nan(values)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [*map(_without_nan, value)]
    return None if isinstance(value, float) and math.isnan(value) else value
