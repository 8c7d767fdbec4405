r"""GPT-2 small (124,439,808 parameters), pre-trained as nanoGPT does.

    python -m gpt_jax.main --config configs/gpt2_124m.py --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

Expected on OpenWebText after 600,000 steps: validation loss about 2.85 (published by nanoGPT,
whose model has no biases; not run here). OpenAI's weights, which never saw it, have 3.12 there.
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('gpt2_124m', variant)
    return config
