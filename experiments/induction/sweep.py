"""Do induction heads appear when the loss falls, and only with two layers?

    python -m gpt_jax.sweep experiments/induction/sweep.py --jobs 2

Olsson et al. 2022, https://arxiv.org/abs/2209.11895. `:large` is for an accelerator.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from experiments import answers
from gpt_jax.sweep.definition import Sweep, Trial

LAYERS = {1: 'one_layer', 2: ''}
COLUMNS = ['heads/induction', 'heads/previous', 'heads/loss_random', 'heads/loss_repeated']
SAME = 30  # steps: the loss and the score move together if their middles are this near
LARGE = {
    'model.d_model': 512,
    'model.num_heads': 8,
    'data.block_length': 128,
    'model.max_seq_len': 256,
    'data.num_documents': 1_000_000,
    'train.batch_size': 256,
    'train.num_steps': 5000,
}


def make(common: Mapping[str, Any], **fields) -> Sweep:
    """Returns the sweep over one and two layers with five seeds."""
    grid = {'seed': [0, 1, 2, 3, 4], 'layers': [*LAYERS]}

    def suggest(trial: optuna.trial.Trial) -> Trial:
        seed, layers = (trial.suggest_categorical(name, found) for name, found in grid.items())
        return Trial(LAYERS[layers], {**common, 'seed': seed})

    return Sweep(
        config='experiments/induction/config.py',
        suggest=suggest,
        grid=grid,
        columns=COLUMNS,
        answer=answer,
        **fields,
    )


def middle(steps: np.ndarray, heights: np.ndarray) -> float:
    """Returns the step at which a curve is first half way from its start to its end."""
    half = (heights[0] + heights[-1]) / 2
    crossed = (heights - half) * np.sign(heights[-1] - heights[0]) >= 0
    return float(steps[np.argmax(crossed)])


def highest(runs: list[answers.Record], column: str) -> np.ndarray:
    """Returns the largest value of a column in each run."""
    return np.array([answers.points(run['columns'][column])[1].max() for run in runs])


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Compares the steps at which loss and score change, and the scores of one and two layers."""
    figure, plots = answers.panels(2)
    runs = {layers: answers.select(results, layers=layers) for layers in LAYERS}
    for layers, colour in ((1, 'tab:gray'), (2, 'tab:blue')):
        for run in runs[layers]:
            first = run is runs[layers][0]
            label = f'{layers} layer{"s" * (layers > 1)}' if first else None
            plots[0].plot(*answers.points(run['curve']), color=colour, alpha=0.6, label=label)
            scores = answers.points(run['columns']['heads/induction'])
            plots[1].plot(*scores, color=colour, alpha=0.6, label=label)
    plots[0].set(xlabel='step', ylabel='validation loss')
    plots[1].set(xlabel='step', ylabel='largest induction score of a head', ylim=(0, 1))
    plots[1].legend(frameon=False)
    answers.save(figure, folder / 'figure.png')
    losses = np.array([middle(*answers.points(run['curve'])) for run in runs[2]])
    scores = np.array(
        [middle(*answers.points(run['columns']['heads/induction'])) for run in runs[2]]
    )
    apart = answers.interval(losses - scores)
    one, two = (answers.interval(highest(runs[layers], 'heads/induction')) for layers in (1, 2))
    verdict = answers.UNDECIDED
    if apart.low > -SAME and apart.high < SAME and one.high < 0.3 and two.low > 0.5:
        verdict = answers.AGREES
    elif abs(apart.mean) > SAME or one.mean > two.mean:
        verdict = answers.DISAGREES
    return {
        'verdict': verdict,
        'finding': f'with two layers the loss is half way down at step {answers.interval(losses)}, '
        f'{apart} steps after the score is half way up; the largest score is {two} with two '
        f'layers and {one} with one',
        'last_loss': {
            str(layers): str(answers.interval([run['value'] for run in each]))
            for layers, each in runs.items()
        },
        'minutes': answers.minutes(results),
    }


sweep = make({})
large = make(LARGE)
