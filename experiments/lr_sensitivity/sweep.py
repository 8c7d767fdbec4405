"""Do query-key norm and z-loss widen the range of learning rates that train?

    python -m gpt_jax.sweep experiments/lr_sensitivity/sweep.py --jobs 2

Wortsman et al. 2023, https://arxiv.org/abs/2309.14322. `:large` is for an accelerator.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from experiments import answers
from experiments.small import LONGER
from gpt_jax.sweep.definition import Sweep, Trial

SMALL = {
    '0.1M': {'model.d_model': 32, 'model.num_layers': 2},
    '0.2M': {'model.d_model': 64, 'model.num_layers': 2},
    '0.9M': {'model.d_model': 128, 'model.num_layers': 4},
}
LARGE = {
    '10M': {'model.d_model': 256, 'model.num_layers': 6},
    '39M': {'model.d_model': 512, 'model.num_layers': 8},
    '124M': {'model.d_model': 768, 'model.num_layers': 12},
}
REMEDIES = {
    'none': {},
    'qk_norm': {'model.qk_norm': 'head'},
    'z_loss': {'train.z_loss': 1e-4},
    'both': {'model.qk_norm': 'head', 'train.z_loss': 1e-4},
}
RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
UNTRAINED = math.log(1024)  # loss of a uniform guess: that of a run that diverged


def make(sizes: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any], **fields) -> Sweep:
    """Returns the sweep over sizes, remedies and rates with three seeds."""
    grid = {'seed': [0, 1, 2], 'size': [*sizes], 'remedy': [*REMEDIES], 'rate': RATES}

    def suggest(trial: optuna.trial.Trial) -> Trial:
        seed, size, remedy, rate = (
            trial.suggest_categorical(name, found) for name, found in grid.items()
        )
        knobs = {'optimizer.learning_rate': rate, 'seed': seed}
        return Trial(overrides={**common, **sizes[size], **REMEDIES[remedy], **knobs})

    return Sweep(config='experiments/small.py', suggest=suggest, grid=grid, answer=answer, **fields)


def sensitivities(results: Mapping[str, Any], size: str, remedy: str) -> np.ndarray:
    """Returns the LR sensitivity of each seed: the mean excess over the best rate's loss."""
    losses = np.array(
        [
            answers.values(results, size=size, remedy=remedy, rate=rate, otherwise=UNTRAINED)
            for rate in answers.choices(results, 'rate')
        ]
    )
    return (np.minimum(losses, UNTRAINED) - losses.min(axis=0)).mean(axis=0)


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Compares the sensitivity of each remedy with that of none, and draws both."""
    sizes, rates = answers.choices(results, 'size'), answers.choices(results, 'rate')
    colours = dict(zip(REMEDIES, ('tab:gray', 'tab:blue', 'tab:orange', 'tab:green'), strict=True))
    figure, plots = answers.panels(len(sizes) + 1, width=3.6)
    for axes, size in zip(plots, sizes, strict=False):
        for remedy, colour in colours.items():
            losses = [
                np.minimum(
                    answers.values(
                        results, size=size, remedy=remedy, rate=rate, otherwise=UNTRAINED
                    ),
                    UNTRAINED,
                )
                for rate in rates
            ]
            means = [each.mean() for each in losses]
            axes.plot(rates, means, marker='.', color=colour, label=remedy)
            low, high = [each.min() for each in losses], [each.max() for each in losses]
            axes.fill_between(rates, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xscale='log', xlabel='learning rate', ylabel='last validation loss', title=size)
    found = {
        remedy: np.array([sensitivities(results, size, remedy) for size in sizes])
        for remedy in REMEDIES
    }
    for remedy, colour in colours.items():
        summaries = [answers.interval(each) for each in found[remedy]]
        mean = np.array([each.mean for each in summaries])
        error = [mean - [each.low for each in summaries], [each.high for each in summaries] - mean]
        plots[-1].errorbar(
            range(len(sizes)), mean, yerr=error, color=colour, capsize=3, marker='o', label=remedy
        )
    plots[-1].set(xticks=range(len(sizes)), xlabel='parameters', ylabel='LR sensitivity (nats)')
    plots[-1].set_xticklabels(sizes)
    plots[-1].legend(frameon=False)
    answers.save(figure, folder / 'figure.png')
    changes = {  # over all pairs of runs: the seeds of one size say nothing about another size
        remedy: answers.interval((found[remedy] - found['none']).ravel())
        for remedy in ('qk_norm', 'z_loss', 'both')
    }
    signs = [changes[remedy].sign for remedy in ('qk_norm', 'z_loss')]
    verdict = answers.UNDECIDED
    if 1 in signs:
        verdict = answers.DISAGREES
    elif signs == [-1, -1]:
        verdict = answers.AGREES
    return {
        'verdict': verdict,
        'finding': 'change of LR sensitivity in nats: '
        + ', '.join(f'{remedy} {change}' for remedy, change in changes.items()),
        'sensitivity': {
            remedy: {
                size: str(answers.interval(each)) for size, each in zip(sizes, rows, strict=True)
            }
            for remedy, rows in found.items()
        },
        'minutes': answers.minutes(results),
    }


sweep = make(SMALL, {})
large = make(LARGE, LONGER)
