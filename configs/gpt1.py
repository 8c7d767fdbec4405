r"""GPT-1 (116,534,784 parameters): post-norm, no final norm, context 512.

    python -m gpt_jax.main --config configs/gpt1.py --config.data.corpus=text \
        --config.data.source=FOLDER

The published model read 7,000 books for 100 epochs; its tokenizer (40,478 tokens with spacy's
pre-tokenisation) is not included, so a byte-level BPE of that size is trained.
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('gpt1', variant)
    config.model.dropouts.residual = config.model.dropouts.attention = 0.1
    config.optimizer.learning_rate = 2.5e-4
    config.optimizer.beta2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.train.batch_size = 64
    config.train.grad_accumulation = 1
    config.train.num_epochs = 100
    config.schedule.final_fraction = 0.0
    return config
