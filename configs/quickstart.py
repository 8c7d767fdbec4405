"""A first run: a small GPT learns Python from the standard library, in minutes on a laptop.

    python -m gpt_jax.main --config configs/quickstart.py
"""

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.tokenizer import TokenizerKind


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    if variant:
        raise unknown_variant(variant, [])
    config = RunConfig()
    config.tokenizer.kind = TokenizerKind.BPE
    config.tokenizer.vocab_size = 1024
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.d_model = 128
    config.model.max_seq_len = 128
    config.model.use_bias = False
    config.optimizer.learning_rate = 2e-3
    config.optimizer.beta2 = 0.99
    config.schedule.warmup_steps = 100
    config.data.split = 'hash:0.05'
    config.train.batch_size = 12
    config.train.num_steps = 1200
    config.train.log_every = 20
    config.eval.every = 300
    config.eval.batches = 20
    config.checkpoint.save_every = 300
    config.sample.prompt = 'def '
    config.sample.max_new_tokens = 120
    return config
