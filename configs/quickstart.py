"""A first run: a small GPT learns Python from the standard library, in minutes on a laptop.

    python -m gpt_jax.main --config configs/quickstart.py

Expect a validation loss near 2.7 (1.48 bits per byte) after 1,200 steps, and text that looks
like Python. The parts are those of `modern_124m`, which learn more from so few steps than GPT-2's:
rotary positions, RMSNorm, query-key norm, squared ReLU, Muon.
"""

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.model.config import MLPKind, NormKind, PositionKind
from gpt_jax.optim import Muon
from gpt_jax.tokenizer import TokenizerKind


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    if variant:
        raise unknown_variant(variant, [])
    config = RunConfig(optimizer=Muon())
    config.tokenizer.kind = TokenizerKind.BPE
    config.tokenizer.vocab_size = 1024
    config.data.split = 'hash:0.05'
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.d_model = 128
    config.model.max_seq_len = 128
    config.model.position = PositionKind.ROPE
    config.model.norm = NormKind.RMSNORM
    config.model.qk_norm = True
    config.model.mlp = MLPKind.RELU2
    config.model.use_bias = False
    config.schedule.final_fraction = 0.0
    config.train.batch_size = 12
    config.train.num_steps = 1200
    config.train.log_every = 20
    config.eval.every = 300
    config.checkpoint.save_every = 300
    config.sample.prompt = 'def '
    config.sample.temperature = 0.7
    return config
