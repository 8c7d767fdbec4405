"""GPT-2 small (124,439,808 parameters), pre-trained as nanoGPT does.

    python -m gpt_jax.main --config configs/gpt2_124m.py --config.data.corpus=text \\
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

Expected on OpenWebText after 600,000 steps: validation loss 3.12 (published by nanoGPT; not
run here).
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('gpt2_124m', variant)
    return config
