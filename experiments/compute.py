"""FLOPs and parameters of a config with overrides, for experiments at equal compute or size."""

from collections.abc import Mapping
from typing import Any

from gpt_jax import run as runs
from gpt_jax.config import RunConfig, finalize, load_config
from gpt_jax.config_tree import set_value
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.train.flops import train_flops_per_token


def finalized(path: str, knobs: Mapping[str, Any]) -> RunConfig:
    """Returns the config of a file with overrides and the vocabulary of its tokenizer."""
    config = load_config(path)
    for key, value in knobs.items():
        set_value(config, key, value)
    tokenizer = make_run_tokenizer(runs.prepare_data(config), config.tokenizer)
    return finalize(config, vocab_size=tokenizer.vocab_size)


def tokens_per_step(config: RunConfig) -> int:
    """Returns the tokens of a batch."""
    return config.train.batch_size * config.model.max_seq_len


def steps_within(config: RunConfig, flops: float) -> int:
    """Returns the number of training steps that a number of FLOPs pays for."""
    per_token = train_flops_per_token(config.model, length=config.model.max_seq_len)
    return round(flops / (per_token * tokens_per_step(config)))
