"""Does the best learning rate of a narrow model serve a wide one, with μP and without?

    python -m gpt_jax.sweep experiments/mup_transfer/sweep.py --jobs 2

Yang et al. 2022, https://arxiv.org/abs/2203.03466. `:large` is for an accelerator.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from experiments import answers
from experiments.small import LONGER
from gpt_jax.sweep.definition import Sweep, Trial

HEAD = 16
RATES = [2.0**power for power in range(-11, -3)]
UNTRAINED = 7.0  # nats; stands for a run that diverged


def make(widths: Sequence[int], base: int, common: Mapping[str, Any], **fields) -> Sweep:
    """Returns the sweep over parametrizations, widths and rates with three seeds.

    At the width `base` both parametrizations are the same.
    """
    grid = {
        'seed': [0, 1, 2],
        'parametrization': ['standard', 'mup'],
        'width': [*widths],
        'rate': RATES,
    }

    def suggest(trial: optuna.trial.Trial) -> Trial:
        seed, parametrization, width, rate = (
            trial.suggest_categorical(name, found) for name, found in grid.items()
        )
        return Trial(
            overrides={
                **common,
                'model.d_model': width,
                'model.num_heads': width // HEAD,
                'model.parametrization': parametrization,
                'model.base.d_model': base,
                'optimizer.learning_rate': rate,
                'seed': seed,
            }
        )

    return Sweep(config='experiments/small.py', suggest=suggest, grid=grid, answer=answer, **fields)


def losses(results: Mapping[str, Any], parametrization: str, width: int) -> np.ndarray:
    """Returns the last losses [rate, seed]."""
    return np.array(
        [
            np.minimum(
                answers.values(
                    results,
                    parametrization=parametrization,
                    width=width,
                    rate=rate,
                    otherwise=UNTRAINED,
                ),
                UNTRAINED,
            )
            for rate in answers.choices(results, 'rate')
        ]
    )


def best_log_rate(losses_RS: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """Returns log2 of the best rate of each seed: the lowest point of a parabola of 3 points."""
    logs, best = np.log2(rates), losses_RS.argmin(axis=0)
    found = []
    for index, column in zip(best, losses_RS.T, strict=True):
        place = float(logs[index])
        if 0 < index < len(logs) - 1:
            left, middle, right = column[index - 1 : index + 2]
            if (curvature := left - 2 * middle + right) > 0:
                place += 0.5 * (left - right) / curvature
        found.append(place)
    return np.array(found)


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Compares how far the best rate moves from the narrowest model to the widest."""
    widths, rates = answers.choices(results, 'width'), answers.choices(results, 'rate')
    figure, plots = answers.panels(2)
    plots[1].sharey(plots[0])
    shift, regret, best_loss = {}, {}, {}
    for axes, parametrization in zip(plots, ('standard', 'mup'), strict=True):
        found = {width: losses(results, parametrization, width) for width in widths}
        for index, (width, each) in enumerate(found.items()):
            shade = 0.3 + 0.7 * (index + 1) / len(widths)
            axes.plot(
                rates, each.mean(axis=1), marker='.', color='tab:blue', alpha=shade, label=width
            )
        axes.set(xscale='log', xlabel='learning rate', title=parametrization)
        axes.set_ylabel('last validation loss')
        best = {width: best_log_rate(each, rates) for width, each in found.items()}
        shift[parametrization] = answers.interval(best[widths[-1]] - best[widths[0]])
        # The excess loss of the widest model at the rate that is best for the narrowest.
        taken = found[widths[0]].mean(axis=1).argmin()
        widest = found[widths[-1]]
        regret[parametrization] = answers.interval(widest[taken] - widest.min(axis=0))
        best_loss[parametrization] = answers.interval(widest.min(axis=0))
    plots[-1].legend(frameon=False, title='width')
    answers.save(figure, folder / 'figure.png')
    moves = {name: abs(each.mean) for name, each in shift.items()}
    verdict = answers.UNDECIDED
    if shift['standard'].sign == -1 and moves['mup'] < 1 and moves['mup'] < moves['standard']:
        verdict = answers.AGREES
    elif moves['mup'] >= moves['standard']:
        verdict = answers.DISAGREES
    return {
        'verdict': verdict,
        'finding': f'log2 of the best rate moves by {shift["standard"]} from width {widths[0]} to '
        f'{widths[-1]}, under μP by {shift["mup"]}; the narrow rate costs the wide model '
        f'{regret["standard"]} nats, under μP {regret["mup"]}; at its own best rate it reaches '
        f'{best_loss["standard"]}, under μP {best_loss["mup"]}',
        'minutes': answers.minutes(results),
    }


sweep = make([32, 64, 128, 256], 128, {})
large = make([128, 256, 512, 1024, 2048], 512, LONGER)
