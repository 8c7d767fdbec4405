r"""The architecture of OLMoE 1B-7B, a mixture of 64 experts, trained from scratch.

    python -m gpt_jax.main --config configs/olmoe_1b_7b.py --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

6,919,161,856 parameters, of which a token uses 1,282,017,280. It has not been trained here.
`--config.mesh.expert=8` shards the experts over 8 devices.
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig
from gpt_jax.model.config import Remat


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('olmoe_1b_7b', variant)
    config.model.execution.remat = Remat.DOTS
    config.optimizer.learning_rate = 4e-4
    config.train.batch_size = 1024
    config.train.grad_accumulation = 16
    return config
