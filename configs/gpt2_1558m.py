r"""GPT-2 XL (1,557,611,200 parameters).

    python -m gpt_jax.main --config configs/gpt2_1558m.py --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

Expected on OpenWebText: validation loss 2.54 for OpenAI's weights (nanoGPT's README; not run
here).
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('gpt2_1558m', variant)
    config.optimizer.learning_rate = 2e-4
    config.train.grad_accumulation = 120
    return config
