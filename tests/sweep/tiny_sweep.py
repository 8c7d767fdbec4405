"""A sweep of runs of a second, for the tests."""

import os

import optuna

from gpt_jax.sweep.definition import Sweep, Trial

STEPS = int(os.environ.get('TINY_STEPS', '20'))


def suggest(trial: optuna.trial.Trial) -> Trial:
    rate = trial.suggest_float('learning_rate', 1e-4, 1e-2, log=True)
    return Trial(
        variant='adamw',
        overrides={'optimizer.learning_rate': rate, 'train.num_steps': STEPS, 'eval.every': 5},
    )


sweep = Sweep(config='tests/tiny_config.py', suggest=suggest, trials=2)
