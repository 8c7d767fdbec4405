"""The result of a coordinate check: a table of slopes, a verdict, JSON and a picture."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_jax import files
from gpt_jax.coordinate_check.measure import Scales
from gpt_jax.model.config import Parametrization
from gpt_jax.telemetry.report import format_columns

# The scale of a flat point changes by less than a fifth from one width to its double. Rules that
# are wrong for a weight give slopes of 0.5 and 1.
FLAT = 0.25
_NAMES = {Parametrization.MUP: 'μP', Parametrization.STANDARD: 'standard'}
NO_PLOT = "no picture: matplotlib is not installed; pip install matplotlib, or -e '.[plot]'"


def is_flat(scales: Scales) -> bool:
    """Returns whether no scale grows with the width at any step, or falls with it in the end."""
    return bool((steepness(scales) < FLAT).all())


def steepness(scales: Scales) -> np.ndarray:
    """Returns what a slope is judged by, `[step, point]`: growth, and after the last step its size.

    Logits, and scores of wider heads, may be smaller in wider models, if they start so: before
    updates align them they are sums of random products, which μP divides by their number.
    """
    growth = scales.slopes.copy()
    starts_flat = growth[0] > -FLAT
    growth[-1] = np.where(starts_flat, np.abs(growth[-1]), growth[-1])
    return growth


def describe(scales: Scales) -> str:
    """Returns the table of slopes at some steps, and the verdict."""
    slopes, last = scales.slopes, len(scales.slopes) - 1
    steps = sorted({0, 1, last // 2, last})
    header = ('point', *(f'step {step}' for step in steps))
    rows = [
        (point, *(f'{slopes[step, i]:+.2f}' for step in steps))
        for i, point in enumerate(scales.points)
    ]
    widths = ', '.join(map(str, scales.widths))
    title = f'{scales.parametrization}: slope of log scale against log width, d_model {widths}'
    return f'{format_columns(title, header, rows)}\n{verdict(scales)}'


def verdict(scales: Scales) -> str:
    """Returns one line: flat, or the point and the step that are not."""
    slopes, name = scales.slopes, scales.parametrization
    if not np.isfinite(slopes).all():
        return f'{name} diverges: some scale is not a finite number above 0'
    if is_flat(scales):
        return (
            f'{name} is flat: over {len(slopes) - 1} steps no slope is steeper than '
            f'{steepness(scales).max():.2f}'
        )
    step, point = np.unravel_index(steepness(scales).argmax(), slopes.shape)
    return (
        f'{name} is not flat: {scales.points[point]} has slope {slopes[step, point]:+.2f} at step '
        f'{step}, where a flat point has less than {FLAT}'
    )


def as_json(checks: Sequence[Scales]) -> list[dict[str, Any]]:
    """Returns the numbers of a check, by parametrization."""
    return [
        {
            'parametrization': str(scales.parametrization),
            'd_model': list(scales.widths),
            'points': list(scales.points),
            'flat': is_flat(scales),
            'scales': _rounded(scales.values),
            'slopes': _rounded(scales.slopes),
            'losses': _rounded(scales.losses),
        }
        for scales in checks
    ]


def _rounded(values: np.ndarray) -> list[Any]:
    """Returns nested lists of numbers with six digits; None where they are not finite."""
    if values.ndim > 1:
        return [_rounded(each) for each in values]
    return [float(f'{each:.6g}') if np.isfinite(each) else None for each in values]


def _limits(checks: Sequence[Scales], point: int) -> tuple[float, float]:
    """Returns the range of a point's axis, the same in all rows and at least two decades."""
    values = np.concatenate([scales.values[..., point].ravel() for scales in checks])
    logs = np.log10(values[np.isfinite(values) & (values > 0)])
    if not logs.size:
        return 0.1, 10.0
    half = max(1.0, 0.55 * (logs.max() - logs.min()))
    middle = (logs.max() + logs.min()) / 2
    return 10 ** (middle - half), 10 ** (middle + half)


def draw(checks: Sequence[Scales], path: pathlib.Path) -> str:
    """Draws scales against width, a row for each parametrization; returns a line that says so."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return NO_PLOT
    points, steps = checks[0].points, checks[0].values.shape[1]
    size = (2.2 * len(points) + 0.8, 2.5 * len(checks) + 0.8)
    figure, panels = pyplot.subplots(
        len(checks), len(points), figsize=size, sharex=True, squeeze=False, layout='constrained'
    )
    colors = pyplot.get_cmap('viridis')(np.linspace(0.92, 0.0, steps))
    limits = [_limits(checks, i) for i in range(len(points))]
    for row, scales in zip(panels, checks, strict=True):
        for i, (panel, point) in enumerate(zip(row, points, strict=True)):
            for step, values in enumerate(scales.values[..., i].T):
                panel.plot(scales.widths, values, '.-', lw=1.2, color=colors[step], label=step)
            panel.set_xscale('log', base=2)
            panel.set_xticks(scales.widths, [str(width) for width in scales.widths])
            panel.set_yscale('log')
            panel.set_ylim(limits[i])
            panel.grid(alpha=0.25)
            panel.set_title(f'{point}, slope {scales.slopes[-1, i]:+.2f}', fontsize=9)
            panel.tick_params(which='both', labelsize=7)
        row[0].set_ylabel(_NAMES[scales.parametrization])
    figure.supxlabel('d_model', fontsize=10)
    figure.suptitle('Mean |activation| against width; slopes after the last step', fontsize=11)
    lines = panels[0][0].get_legend_handles_labels()
    figure.legend(*lines, title='step', loc='outside right center', fontsize=8, frameon=False)
    with files.atomic_file(path) as file:
        figure.savefig(file, dpi=110, format='png')
    pyplot.close(figure)
    return f'wrote {path}'
