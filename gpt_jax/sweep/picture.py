"""The picture of a sweep by matplotlib, which is optional: the metric against each knob, curves."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from gpt_jax import files

COLUMNS = 3


def draw(results: Mapping[str, Any], path: pathlib.Path) -> bool:
    """Writes a PNG of results; returns False if there are none, or matplotlib is not installed."""
    complete = [trial for trial in results['trials'] if trial['value'] is not None]
    if not complete:
        return False
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator
    except ImportError:
        return False
    trials, metric, knobs = results['trials'], results['metric'], results['knobs']
    count = len(knobs) + 1
    columns = min(COLUMNS, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines), layout='constrained')
    plots = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in plots[count:]:
        axes.remove()
    for axes, (name, knob) in zip(plots, knobs.items(), strict=False):
        known = [trial for trial in complete if name in trial['params']]
        choices = knob['choices']
        places = [trial['params'][name] for trial in known]
        if choices:
            places = [choices.index(place) for place in places]
            axes.xaxis.set_major_locator(FixedLocator(range(len(choices))))
            axes.set_xticklabels(map(str, choices))
            axes.set_xlim(-0.5, len(choices) - 0.5)
        elif knob['log']:
            axes.set_xscale('log')
        is_best = [trial['trial'] == results['best'] for trial in known]
        colours = ['tab:orange' if best else 'tab:blue' for best in is_best]
        axes.scatter(places, [trial['value'] for trial in known], c=colours)
        axes.set(xlabel=name, ylabel=metric)
    curves = plots[count - 1]
    for trial in trials:
        is_best = trial['trial'] == results['best']
        curves.plot(
            [int(step) for step in trial['curve']],
            [*trial['curve'].values()],
            color='tab:orange' if is_best else 'tab:blue',
            alpha=1.0 if is_best else 0.4,
            marker='.',
            linestyle='--' if trial['state'] == 'pruned' else '-',
        )
    curves.set(xlabel='step', ylabel=metric)
    figure.suptitle(results['study'])
    with files.atomic_file(path) as file:
        figure.savefig(file, format='png', dpi=110)
    return True
