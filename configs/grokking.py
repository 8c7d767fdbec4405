"""Grokking: a transformer memorises sums modulo 97, and much later generalises (Power et al. 2022).

    python -m gpt_jax.main --config configs/grokking.py

Of all 9,409 equations `a + b = c`, 30 % are for training. `train/accuracy` is 1 after 200 steps,
and `eval/accuracy`, that on the other 70 %, is 0.3. It is 1 after 2,000 steps, which take two to
three minutes on a CPU. With --config.optimizer.weight_decay=0 it is 0.4 after 2,500 steps.
https://arxiv.org/abs/2201.02177
"""

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.data.config import Windows
from gpt_jax.model.config import MLPKind, PositionKind
from gpt_jax.optim.schedule import ScheduleKind
from gpt_jax.tokenizer import TokenizerKind


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    if variant:
        raise unknown_variant(variant, [])
    config = RunConfig()
    config.tokenizer.kind = TokenizerKind.SYMBOL
    config.data.corpus = 'modular'
    config.data.modulus = 97
    config.data.split = 'hash:0.7'
    config.data.windows = Windows.DOCUMENTS
    config.model.num_layers = 1
    config.model.num_heads = 4
    config.model.d_model = 128
    config.model.max_seq_len = 4  # a + b =
    config.model.position = PositionKind.LEARNED
    config.model.mlp = MLPKind.RELU
    config.optimizer.learning_rate = 1e-3
    config.optimizer.beta2 = 0.98
    config.optimizer.weight_decay = 1.0
    config.schedule.kind = ScheduleKind.CONSTANT
    config.schedule.warmup_steps = 10
    config.train.batch_size = 512
    config.train.num_steps = 2500
    config.train.log_every = 100
    config.eval.every = 100
    config.eval.batches = 0
    config.checkpoint.save_every = 500
    config.sample.prompt = '12 + 90 ='
    config.sample.max_new_tokens = 1
    config.sample.temperature = 0.0
    return config
