"""Does a network generalise long after it has memorised, and what does it learn then?

    python -m gpt_jax.sweep experiments/grokking/sweep.py --jobs 2

Power et al. 2022, https://arxiv.org/abs/2201.02177, and Nanda et al. 2023,
https://arxiv.org/abs/2301.05217. `:large` is for an accelerator.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from experiments import answers
from gpt_jax.sweep.definition import Sweep, Trial

MODULUS = 97
FREQUENCIES = [f'fourier/{k}' for k in range(1, MODULUS // 2 + 1)]
LEARNED = 0.95  # accuracy


def make(decays: Sequence[float], common: Mapping[str, Any], **fields) -> Sweep:
    """Returns the sweep over weight decay with three seeds."""
    grid = {'seed': [0, 1, 2], 'weight_decay': [*decays]}

    def suggest(trial: optuna.trial.Trial) -> Trial:
        seed, decay = (trial.suggest_categorical(name, found) for name, found in grid.items())
        return Trial(overrides={**common, 'optimizer.weight_decay': decay, 'seed': seed})

    return Sweep(
        config='experiments/grokking/config.py',
        suggest=suggest,
        grid=grid,
        columns=['train/accuracy', 'eval/accuracy', 'fourier/top5', *FREQUENCIES],
        answer=answer,
        **fields,
    )


def first_step(record: answers.Record, column: str) -> float:
    """Returns the first step at which an accuracy is `LEARNED`; NaN if it never is."""
    steps, heights = answers.points(record['columns'][column])
    learned = np.flatnonzero(heights >= LEARNED)
    return float(steps[learned[0]]) if len(learned) else math.nan


def count_frequencies(record: answers.Record, share: float = 0.9) -> int:
    """Returns the number of frequencies that together have a share of the embedding."""
    shares = [answers.points(record['columns'][name])[1][-1] for name in FREQUENCIES]
    return int(np.searchsorted(np.cumsum(sorted(shares, reverse=True)), share)) + 1


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Measures the delay with each decay, and the spectrum of the embedding at the end."""
    decays = sorted({record['params']['weight_decay'] for record in results['trials']})
    runs = {decay: answers.select(results, weight_decay=decay) for decay in decays}
    strongest = max(decays)
    figure, plots = answers.panels(3)
    for run in runs[strongest]:
        for column, colour in (('train/accuracy', 'tab:gray'), ('eval/accuracy', 'tab:blue')):
            label = column if run is runs[strongest][0] else None
            curve = answers.points(run['columns'][column])
            plots[0].plot(*curve, color=colour, alpha=0.7, label=label)
    plots[0].set(xlabel='step', ylabel='accuracy', title=f'weight decay {strongest:g}')
    plots[0].legend(frameon=False)
    for index, decay in enumerate(decays):
        for run in runs[decay]:
            label = f'{decay:g}' if run is runs[decay][0] else None
            curve = answers.points(run['columns']['eval/accuracy'])
            plots[1].plot(*curve, color=f'C{index}', alpha=0.7, label=label)
    plots[1].set(xlabel='step', ylabel='accuracy on other pairs', title='by weight decay')
    plots[1].legend(frameon=False)
    shares = [answers.points(runs[strongest][0]['columns'][name])[1][-1] for name in FREQUENCIES]
    plots[2].bar(range(1, len(shares) + 1), shares, color='tab:blue')
    plots[2].axhline(1 / len(shares), color='black', linewidth=0.5)
    plots[2].set(xlabel='frequency', ylabel='share of the embedding', title='seed 0, at the end')
    answers.save(figure, folder / 'figure.png')
    memorised = np.array([first_step(run, 'train/accuracy') for run in runs[strongest]])
    generalised = np.array([first_step(run, 'eval/accuracy') for run in runs[strongest]])
    without = [first_step(run, 'eval/accuracy') for run in runs[min(decays)]]
    delay = answers.interval(generalised - memorised)
    ratio = generalised / memorised
    top = answers.interval(
        [answers.points(run['columns']['fourier/top5'])[1][-1] for run in runs[strongest]]
    )
    never = sum(math.isnan(step) for step in without)
    verdict = answers.UNDECIDED
    if (ratio > 2).all() and never == len(without) and top.low > 0.5:
        verdict = answers.AGREES
    elif np.isnan(delay.mean) or (ratio < 1.5).all():
        verdict = answers.DISAGREES
    return {
        'verdict': verdict,
        'finding': f'with weight decay {strongest:g} the accuracy on other pairs reaches {LEARNED} '
        f'{delay} steps after that on trained ones; with {min(decays):g} it does not in {never} of '
        f'{len(without)} runs; five frequencies have {top} of the embedding',
        'memorised_at': memorised.tolist(),
        'generalised_at': generalised.tolist(),
        'frequencies_with_90_percent': [count_frequencies(run) for run in runs[strongest]],
        'minutes': answers.minutes(results),
    }


sweep = make([0.0, 0.3, 1.0], {})
large = make([0.0, 0.1, 0.3, 1.0, 3.0], {'data.modulus': MODULUS, 'train.num_steps': 50_000})
