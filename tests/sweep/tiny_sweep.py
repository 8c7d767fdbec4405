"""A sweep over seeds, for the tests; PRUNE_ABOVE is the highest loss that is not pruned after step
PRUNE_AFTER."""

import os

import optuna

from gpt_jax.sweep.definition import Sweep, Trial

SEEDS = [3, 4, 5]


def suggest(trial: optuna.trial.Trial) -> Trial:
    return Trial(variant='adamw', overrides={'seed': trial.suggest_categorical('seed', SEEDS)})


sweep = Sweep(
    config='tests/sweep/tiny_run.py',
    suggest=suggest,
    grid={'seed': SEEDS},
    pruner=optuna.pruners.ThresholdPruner(
        upper=float(os.environ.get('PRUNE_ABOVE', 'inf')),
        n_warmup_steps=int(os.environ.get('PRUNE_AFTER', 0)),
    ),
)
