"""A run of some seconds on a committed text, in one variant for each optimizer."""

import pathlib

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.optim import OPTIMIZERS
from gpt_jax.tokenizer import TokenizerKind

TEXT = pathlib.Path(__file__).parent / 'golden' / 'alice.txt'
VARIANTS = {kind.__name__.lower(): kind for kind in OPTIMIZERS}


def get_config(variant: str = '') -> RunConfig:
    """40 steps with dropout, accumulation and a moving average."""
    if variant and variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = RunConfig(optimizer=VARIANTS[variant or 'adamw']())
    config.tokenizer.kind = TokenizerKind.CHAR
    config.data.corpus = 'text'
    config.data.source = str(TEXT)
    config.data.split = 'tail:0.2'
    config.model.num_layers = 2
    config.model.num_heads = 2
    config.model.d_model = 32
    config.model.max_seq_len = 32
    config.model.dropouts.residual = 0.1
    config.model.dropouts.attention = 0.1
    config.train.batch_size = 8
    config.train.grad_accumulation = 2
    config.train.ema_decay = 0.9
    config.train.num_steps = 40
    config.train.log_every = 2
    config.schedule.warmup_steps = 5
    config.eval.every = 10
    config.eval.batches = 2
    config.checkpoint.save_every = 10
    config.checkpoint.keep_last = 3
    config.sample.max_new_tokens, config.sample.at_end = 20, False  # tests that look at it ask
    config.mesh.data = 1
    return config
