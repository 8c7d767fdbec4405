"""A picture of the per-seed differences, by matplotlib, which is optional."""

import pathlib

from gpt_jax import files
from gpt_jax.compare.comparison import Results
from gpt_jax.errors import UserError


def plot_differences(results: Results, path: pathlib.Path) -> None:
    """Writes a PNG: per candidate a dot for each pair, the mean with its interval, the margin.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--plot needs matplotlib; pip install matplotlib, or pip install -e '.[plot]'"
        ) from None
    comparisons = results.comparisons
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(comparisons)), dpi=120, layout='constrained')
    axes = figure.subplots()
    axes.axvspan(-results.margin, results.margin, color='0.9', label=f'± {results.margin:g}')
    axes.axvline(0, color='0.5', linewidth=1)
    for row, each in enumerate(comparisons):
        axes.plot([*each.differences.values()], [row] * len(each.differences), 'o', alpha=0.4)
        paired = each.paired
        axes.plot([paired.low, paired.high], [row, row], color='black', linewidth=1)
        axes.plot(paired.mean, row, '|', color='black', markersize=14)
    labels = [f'{each.name}: {each.verdict}' for each in comparisons]
    axes.set_yticks(range(len(comparisons)), labels)
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.set_xlabel(f'{results.metric.name} minus that of {comparisons[0].baseline}')
    axes.legend(loc='best', fontsize='small')
    with files.atomic_file(path) as file:
        figure.savefig(file, format='png')
