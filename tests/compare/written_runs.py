"""Workdirs as training leaves them, with losses that the tests choose."""

import json

import numpy as np

from gpt_jax.config import finalize
from gpt_jax.config_tree import to_json
from gpt_jax.train.run_folder import DIVERGED
from tests.tiny_config import get_config

EVERY, LAST = 10, 40
VOCABULARY = 55


def write_runs(
    folder, *, shift=0.0, seeds=range(5), noise_seed=0, learning_rate=1e-3, diverged=(), **knobs
):
    """Writes finished runs whose losses fall by 0.1 per evaluation, 5 steps per second."""
    random = np.random.default_rng(noise_seed)
    for seed in seeds:
        config = get_config()
        config.seed, config.optimizer.learning_rate = seed, learning_rate
        for name, value in knobs.items():
            setattr(config.eval, name, value)
        config = finalize(config, vocab_size=VOCABULARY)
        workdir = folder / f'seed_{seed}'
        workdir.mkdir(parents=True)
        (workdir / 'config.json').write_text(json.dumps(to_json(config)), encoding='utf-8')
        rows, tokens = [], config.train.batch_size * config.model.max_seq_len
        for step in range(EVERY, LAST + 1, EVERY):
            loss = 3 - step / 100 + seed / 50 + shift + random.normal(0, 0.001)
            speed = {'train/tokens': step * tokens, 'train/tokens_per_second': tokens * 5.0}
            rows += [{'step': step, **speed}]
            rows += [{'step': step, 'eval/loss': loss, 'eval/accuracy': 1 - loss / 4}]
        if seed in diverged:
            rows = [*rows[:3], {'step': 20, DIVERGED: 1.0}]
        text = ''.join(json.dumps(row) + '\n' for row in rows)
        (workdir / 'metrics.jsonl').write_text(text, encoding='utf-8')
