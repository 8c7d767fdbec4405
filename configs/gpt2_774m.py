r"""GPT-2 large (774,030,080 parameters).

    python -m gpt_jax.main --config configs/gpt2_774m.py --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

Expected on OpenWebText: validation loss 2.67 for OpenAI's weights (nanoGPT's README; not run
here).
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('gpt2_774m', variant)
    config.optimizer.learning_rate = 2.5e-4
    config.train.grad_accumulation = 60
    return config
