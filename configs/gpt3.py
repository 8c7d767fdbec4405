r"""The small models of the GPT-3 paper by `:125m`, `:350m`, `:760m` or `:1300m`.

    python -m gpt_jax.main --config configs/gpt3.py:125m --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

Sizes, batch sizes (0.5 or 1 M tokens) and learning rates of its table 2.1; dense attention in
every layer. They have not been trained here.
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig, unknown_variant

LEARNING_RATES = {'125m': 6e-4, '350m': 3e-4, '760m': 2.5e-4, '1300m': 2e-4}


def get_config(variant: str = '125m') -> RunConfig:
    """The run of one size."""
    variant = variant or '125m'
    if variant not in LEARNING_RATES:
        raise unknown_variant(variant, LEARNING_RATES)
    config = pretraining(f'gpt3_{variant}')
    config.optimizer.learning_rate = LEARNING_RATES[variant]
    tokens = 1_048_576 if variant == '1300m' else 524_288
    config.train.batch_size = tokens // config.model.max_seq_len
    config.train.grad_accumulation = config.train.batch_size // 16
    config.train.num_tokens = 300_000_000_000
    return config
