"""The sensitivity of a small GPT to its learning rate, for Muon and for AdamW.

    python -m gpt_jax.sweep experiments/lr_sensitivity/sweep.py --trials 8

The quickstart with a smaller network and fewer steps: well under a minute per trial on a laptop.
"""

import optuna

from gpt_jax.sweep.definition import Sweep, Trial

SIZES = {
    'model.num_layers': 2,
    'model.num_heads': 2,
    'model.d_model': 64,
    'model.max_seq_len': 64,
    'train.num_steps': 100,
    'schedule.warmup_steps': 10,
    'eval.every': 25,
    'eval.batches': 10,
    'checkpoint.save_every': 25,
    'sample.at_end': False,
}


def suggest(trial: optuna.trial.Trial) -> Trial:
    """Draws an optimizer and a learning rate."""
    optimizer = trial.suggest_categorical('optimizer', ['muon', 'adamw'])
    rate = trial.suggest_float('learning_rate', 1e-4, 1e-1, log=True)
    return Trial(overrides={**SIZES, 'optimizer': optimizer, 'optimizer.learning_rate': rate})


sweep = Sweep(
    config='configs/quickstart.py',
    suggest=suggest,
    trials=8,
    pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=25),
)
