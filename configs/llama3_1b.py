r"""The architecture of Llama 3.2 1B (1,235,814,400 parameters), trained from scratch.

    python -m gpt_jax.main --config configs/llama3_1b.py --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

Plain rotary positions with base 500,000; the long-context scaling of the published weights is
not part of it. It has not been trained here.
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig
from gpt_jax.model.config import Remat


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('llama3_1b', variant)
    config.model.execution.remat = Remat.DOTS
    config.optimizer.learning_rate = 3e-4
    config.train.batch_size = 64
    config.train.grad_accumulation = 4
    return config
