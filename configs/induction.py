"""Induction heads: two attention-only layers learn to copy what came before (Olsson et al. 2022).

    python -m gpt_jax.main --config configs/induction.py

A document is a block of 32 random letters that comes twice, of which only the second time is
learned. Two layers learn to look for the last place of the current letter and to copy what came
after it: between steps 250 and 300 the validation loss falls from 3.2 to 1.2 nats. That of
`:one_layer` is 3.5 after 600 steps.
https://arxiv.org/abs/2209.11895
"""

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.data.config import Windows
from gpt_jax.model.config import PositionKind
from gpt_jax.model.mlp import NoMLP
from gpt_jax.optim.schedule import ScheduleKind
from gpt_jax.tokenizer import TokenizerKind


def get_config(variant: str = '') -> RunConfig:
    """Two layers, or one."""
    if variant not in ('', 'one_layer'):
        raise unknown_variant(variant, ['one_layer'])
    config = RunConfig()
    config.tokenizer.kind = TokenizerKind.SYMBOL
    config.data.corpus = 'repeated'
    config.data.num_documents = 20_000
    config.data.block_length = 32
    config.data.split = 'hash:0.05'
    config.data.windows = Windows.DOCUMENTS
    config.model.num_layers = 1 if variant else 2
    config.model.num_heads = 4
    config.model.d_model = 64
    config.model.max_seq_len = 64
    config.model.position = PositionKind.ALIBI
    config.model.mlp = NoMLP()
    config.optimizer.learning_rate = 4e-3
    config.schedule.kind = ScheduleKind.CONSTANT
    config.schedule.warmup_steps = 20
    config.train.batch_size = 64
    config.train.num_steps = 600
    config.train.log_every = 10
    config.eval.every = 50
    config.eval.batches = 0
    config.checkpoint.save_every = 200
    config.sample.prompt = 'q w e r t y u i o p q w e'
    config.sample.max_new_tokens = 7
    config.sample.temperature = 0.0
    return config
