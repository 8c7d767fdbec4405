"""Compares AdamW, Lion, Adafactor, Muon and SGD, each at its own best rate.

    python -m gpt_jax.sweep experiments/optimizers/sweep.py --jobs 2

Every optimizer gets five rates. Two seeds choose its rate, three others measure it. `:large` is
for an accelerator.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from experiments import answers
from gpt_jax.sweep.definition import Sweep, Trial

# Five rates, each twice the one before; the middle is near the best of a first trial.
LOWEST = {'adamw': 1e-3, 'lion': 2e-4, 'adafactor': 1.6e-2, 'muon': 1e-2, 'sgd': 0.025}
STEPS = [1, 2, 4, 8, 16]
CHOOSING, MEASURING = [0, 1], [2, 3, 4]
UNTRAINED = 7.0  # nats; stands for a run that diverged
COLOURS = dict(
    zip(LOWEST, ('tab:gray', 'tab:green', 'tab:purple', 'tab:blue', 'tab:orange'), strict=True)
)
LONGER = {
    'model.d_model': 512,
    'model.num_layers': 8,
    'model.num_heads': 8,
    'model.max_seq_len': 512,
    'train.batch_size': 128,
    'train.num_steps': 5000,
    'schedule.warmup_steps': 500,
    'eval.every': 250,
    'model.precision.compute': 'bfloat16',
}
SMALL = {'model.d_model': 128, 'model.num_layers': 4, 'train.num_steps': 300, 'eval.every': 20}
GRID = {'seed': CHOOSING + MEASURING, 'optimizer': [*LOWEST], 'factor': STEPS}


def make(common: Mapping[str, Any], **fields) -> Sweep:
    """Returns the sweep over optimizers, rates and seeds."""

    def suggest(trial: optuna.trial.Trial) -> Trial:
        seed, optimizer, factor = (
            trial.suggest_categorical(name, found) for name, found in GRID.items()
        )
        return Trial(
            overrides={
                **common,
                'optimizer': optimizer,
                'optimizer.learning_rate': LOWEST[optimizer] * factor,
                'seed': seed,
            }
        )

    return Sweep(config='experiments/small.py', suggest=suggest, grid=GRID, answer=answer, **fields)


def best_factor(results: Mapping[str, Any], optimizer: str) -> int:
    """Returns the factor of the rate with the lowest mean loss over the choosing seeds."""

    def loss(factor: int) -> float:
        found = answers.values(results, optimizer=optimizer, factor=factor, otherwise=UNTRAINED)
        return float(found[: len(CHOOSING)].mean())

    return min(STEPS, key=loss)


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Measures the optimizers at their best rates by the seeds that did not choose them."""
    chosen = {name: best_factor(results, name) for name in LOWEST}
    runs = {
        name: answers.select(results, optimizer=name, factor=factor)[len(CHOOSING) :]
        for name, factor in chosen.items()
    }
    last = {name: np.array([run['value'] for run in each]) for name, each in runs.items()}
    target = float(last['adamw'].max())
    reached = {name: [answers.reach(run, target) for run in each] for name, each in runs.items()}
    figure, plots = answers.panels(3)
    for name, colour in COLOURS.items():
        losses = [
            np.minimum(
                answers.values(results, optimizer=name, factor=factor, otherwise=UNTRAINED),
                UNTRAINED,
            ).mean()
            for factor in STEPS
        ]
        plots[0].plot(STEPS, losses, marker='.', color=colour, label=name)
        steps, _ = answers.points(runs[name][0]['curve'])
        curve = np.mean([answers.points(run['curve'])[1] for run in runs[name]], axis=0)
        plots[1].plot(steps, curve, color=colour, label=name)
        at, seconds = answers.points(runs[name][0]['training_seconds'])
        plots[2].plot(np.interp(steps, at, seconds), curve, color=colour, label=name)
    plots[0].set(xscale='log', xlabel='rate by the lowest of each', ylabel='last validation loss')
    plots[1].set(xlabel='step', ylabel='validation loss at the best rate')
    plots[2].set(xlabel='seconds of training', ylabel='validation loss at the best rate')
    for axes in plots[1:]:
        axes.axhline(target, color='black', linewidth=0.5)
    plots[0].legend(frameon=False)
    answers.save(figure, folder / 'figure.png')
    differences = {
        name: answers.interval(last[name] - last['adamw']) for name in LOWEST if name != 'adamw'
    }
    muon = differences['muon'].sign
    return {
        'verdict': {-1: answers.AGREES, 0: answers.UNDECIDED, 1: answers.DISAGREES}[muon],
        'finding': 'last loss minus that of AdamW: '
        + ', '.join(f'{name} {each}' for name, each in differences.items()),
        'target': target,
        # None where the target is never reached.
        'steps_to_target': {
            name: [found and found[0] for found in each] for name, each in reached.items()
        },
        'seconds_to_target': {
            name: [found and found[1] for found in each] for name, each in reached.items()
        },
        'best_rate': {name: LOWEST[name] * factor for name, factor in chosen.items()},
        'best_is_at_the_edge': [name for name in LOWEST if chosen[name] in (STEPS[0], STEPS[-1])],
        'minutes': answers.minutes(results),
    }


sweep = make(SMALL)
large = make(LONGER)
