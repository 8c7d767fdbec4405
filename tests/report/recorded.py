"""Workdirs as a run leaves them, with made-up metrics."""

import json
import math

from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import set_value, to_json
from gpt_jax.telemetry.metrics import MetricsWriter

COMMIT = 'ab' * 20


def losses(steps, *, log_every=10, start=4.0, noise=0.02, seed=0):
    """Training losses that fall as a run's do, by step; noise without a random generator."""
    return {
        step: start * (0.3 + 0.7 * math.exp(-step / 400)) + noise * math.sin(12.9 * step + seed)
        for step in range(log_every, steps + 1, log_every)
    }


def write_run(folder, trained, evaluated=None, *, rows=(), samples=None, speed=1000.0, **knobs):
    """Writes a workdir with the losses of training and of evaluation by step.

    `rows` are more rows; `knobs` are those of the config, with `__` for the dots.
    """
    config = RunConfig()
    for name, value in knobs.items():
        set_value(config, name.replace('__', '.'), value)
    final = finalize(config, vocab_size=10)
    tokens = config.train.batch_size * config.model.max_seq_len
    folder.mkdir(parents=True)
    with MetricsWriter(folder, ('jsonl',), resume_step=None) as writer:
        for step, loss in trained.items():
            row = {'loss': loss, 'learning_rate': 1e-3, 'tokens_per_second': speed}
            row |= {'data_wait_seconds': 0.01 * tokens / speed, 'skipped_steps': 0.0}
            writer.write(step, {f'train/{name}': value for name, value in row.items()})
        for step, loss in (evaluated or {}).items():
            writer.write(step, {'eval/loss': loss, 'eval/bits_per_byte': loss / 2})
        for step, row in rows:
            writer.write(step, row)
    (folder / 'config.json').write_text(json.dumps(to_json(final)))
    (folder / 'derived.json').write_text(
        json.dumps(['model.num_kv_heads', 'model.d_ff', 'model.head_dim', 'eval.batch_size'])
    )
    provenance = {'command': ['main.py', '--config', 'x.py'], 'git_commit': COMMIT + '+'}
    provenance['environment'] = {'devices': '8 x imagined', 'jax': '0.1'}
    (folder / 'provenance.json').write_text(json.dumps(provenance))
    (folder / 'samples').mkdir()
    for step, text in (samples or {}).items():
        (folder / 'samples' / f'{step}.txt').write_text(text + '\n')
    return folder
