r"""The choices of small GPTs today, at GPT-2 small's width and depth.

    python -m gpt_jax.main --config configs/modern_124m.py --config.data.corpus=text \
        --config.data.source=FOLDER --config.tokenizer.path=FOLDER

162,151,680 parameters, 123,554,304 without the second table: rotary positions, RMSNorm,
query-key norm, squared ReLU, an untied and soft-capped output, Muon for the hidden matrices, a
warm-up, stable, decay schedule. It has not been trained to the end here.
"""

from configs.base import pretraining
from gpt_jax.config import RunConfig
from gpt_jax.optim.muon import Muon
from gpt_jax.optim.schedule import ScheduleKind


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    config = pretraining('modern_124m', variant, optimizer=Muon())
    config.schedule.kind = ScheduleKind.WSD
    config.schedule.warmup_steps = 250
    config.schedule.final_fraction = 0.0
    config.train.num_steps = 20_000
    return config
