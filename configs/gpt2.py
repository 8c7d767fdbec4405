r"""GPT-2 by `:124m` (the default), `:355m`, `:774m` or `:1558m`, pre-trained as nanoGPT does.

    python -m gpt_jax.main --config configs/gpt2.py:124m --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

Validation losses on OpenWebText that nanoGPT publishes; none was run here:

    variant   parameters       OpenAI's weights
    124m        124,439,808    3.12 (2.85 after 600,000 steps of nanoGPT's own, without biases)
    355m        354,823,168    2.84
    774m        774,030,080    2.67
    1558m     1,557,611,200    2.54
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig, unknown_variant

# Learning rate and micro-batches of each size.
SIZES = {'124m': (6e-4, 15), '355m': (3e-4, 30), '774m': (2.5e-4, 60), '1558m': (2e-4, 120)}


def get_config(variant: str = '124m') -> RunConfig:
    """Returns the run of one size."""
    variant = variant or '124m'
    if variant not in SIZES:
        raise unknown_variant(variant, SIZES)
    config = pretraining(f'gpt2_{variant}')
    config.optimizer.learning_rate, config.train.grad_accumulation = SIZES[variant]
    return config
