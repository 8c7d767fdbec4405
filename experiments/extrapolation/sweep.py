"""Evaluates kinds of positions on longer texts than in training.

    python -m gpt_jax.sweep experiments/extrapolation/sweep.py --jobs 2

Press et al. 2022, https://arxiv.org/abs/2108.12409. `:large` is for an accelerator.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from experiments import answers
from experiments.extrapolation.config import FACTORS
from gpt_jax.sweep.definition import Sweep, Trial

POSITIONS = ['alibi', 'rope', 'sinusoidal', 'learned', 'none']
COLUMNS = [f'lengths/{factor}x' for factor in FACTORS]
MARGIN = 0.05  # nats: ALiBi holds its loss if it rises by less
LARGE = {
    'model.d_model': 768,
    'model.num_layers': 12,
    'model.num_heads': 12,
    'model.max_seq_len': 512,
    'train.batch_size': 128,
    'train.num_steps': 10_000,
    'schedule.warmup_steps': 500,
    'optimizer.learning_rate': 6e-4,
    'eval.every': 1000,
    'model.precision.compute': 'bfloat16',
}


def make(common: Mapping[str, Any], **fields) -> Sweep:
    """Returns the sweep over kinds of positions with three seeds."""
    grid = {'seed': [0, 1, 2], 'position': POSITIONS}

    def suggest(trial: optuna.trial.Trial) -> Trial:
        seed, position = (trial.suggest_categorical(name, found) for name, found in grid.items())
        return Trial(position, {**common, 'seed': seed})

    return Sweep(
        config='experiments/extrapolation/config.py',
        suggest=suggest,
        grid=grid,
        columns=COLUMNS,
        answer=answer,
        **fields,
    )


def losses(results: Mapping[str, Any], position: str) -> np.ndarray:
    """Returns the losses [length, seed]; NaN where there is none."""
    runs = answers.select(results, position=position)
    return np.array(
        [[*run['columns'][name].values(), math.nan][0] for name in COLUMNS for run in runs]
    ).reshape(len(COLUMNS), len(runs))


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Compares the loss at eight times the length with that at the length of training."""
    figure, [axes] = answers.panels(1, width=5.5)
    found = {position: losses(results, position) for position in POSITIONS}
    for position, each in found.items():
        line = axes.plot(FACTORS, each.mean(axis=1), marker='o', label=position)[0]
        low, high = each.min(axis=1), each.max(axis=1)
        axes.fill_between(FACTORS, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set(xscale='log', xlabel='length of the windows by that of training')
    axes.set(ylabel='validation loss', xticks=FACTORS)
    axes.set_xticklabels([f'{factor}x' for factor in FACTORS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    answers.save(figure, folder / 'figure.png')
    rises = {
        position: answers.interval(each[-1] - each[0])
        for position, each in found.items()
        if position != 'learned'
    }
    others = {position: rises[position].low for position in ('sinusoidal', 'rope')}
    verdict = answers.UNDECIDED
    if rises['alibi'].high < MARGIN and min(others.values()) > MARGIN:
        verdict = answers.AGREES
    elif rises['alibi'].low > MARGIN:
        verdict = answers.DISAGREES
    return {
        'verdict': verdict,
        'finding': f'loss at {FACTORS[-1]}x the trained length minus that at 1x: '
        + ', '.join(f'{position} {each}' for position, each in rises.items()),
        'loss': {
            position: {
                name: str(answers.interval(row))
                for name, row in zip(COLUMNS, each, strict=True)
                if np.isfinite(row).all()
            }
            for position, each in found.items()
        },
        'minutes': answers.minutes(results),
    }


sweep = make({})
large = make(LARGE)
