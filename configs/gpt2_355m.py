r"""GPT-2 medium (354,823,168 parameters).

    python -m gpt_jax.main --config configs/gpt2_355m.py --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

OpenAI's weights have a validation loss of 2.84 on OpenWebText (nanoGPT's README; not run here).
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('gpt2_355m', variant)
    config.optimizer.learning_rate = 3e-4
    config.train.grad_accumulation = 30
    return config
