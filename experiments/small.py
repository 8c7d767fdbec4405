"""The small GPTs that the experiments vary, on the Python standard library.

A block as in GPT-2 (Radford et al. 2019) without biases, 64 tokens of context, AdamW with a cosine
to zero. Sweep files set what their question is about.
"""

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.tokenizer import TokenizerKind

# Overrides for longer runs on an accelerator.
LONGER = {
    'train.num_steps': 5000,
    'train.batch_size': 128,
    'model.max_seq_len': 512,
    'schedule.warmup_steps': 500,
    'eval.every': 1000,
    'model.precision.compute': 'bfloat16',
}


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    if variant:
        raise unknown_variant(variant, [])
    config = RunConfig()
    config.tokenizer.kind = TokenizerKind.BPE
    config.tokenizer.vocab_size = 1024
    config.data.split = 'hash:0.05'
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.d_model = 64
    config.model.max_seq_len = 64
    config.model.use_bias = False
    config.optimizer.learning_rate = 3e-3
    config.optimizer.beta2 = 0.95
    config.schedule.warmup_steps = 30
    config.schedule.final_fraction = 0.0
    config.train.batch_size = 16
    config.train.num_steps = 300
    config.train.log_every = 25
    config.train.sinks = ('jsonl',)
    config.eval.every = 100
    config.eval.batches = 20
    config.eval.batch_size = 64
    config.sample.at_end = False
    config.checkpoint.save_every = 0
    config.checkpoint.keep_best = False
    return config
