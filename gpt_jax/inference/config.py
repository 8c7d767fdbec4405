"""The config of generation."""

import dataclasses
import enum

from gpt_jax.config_tree import (
    check_domains,
    count,
    fraction,
    from_json_value,
    real,
    seed32,
    whole,
)
from gpt_jax.errors import UserError


class WeightType(enum.StrEnum):
    """The types of the matrices while a model generates."""

    COMPUTE = 'compute'  # that of the activations
    INT8 = 'int8'  # 8-bit integers with a scale for each output: model/weight_rounding.py


@dataclasses.dataclass(slots=True, kw_only=True)
class SampleConfig:
    """Settings of sampling, in `--mode generate` and for the samples during training."""

    every: int = whole(0)  # steps between samples during training; 0: only at the end
    at_end: bool = True  # also draw samples after the last step
    prompt: str = ''  # the beginning of the text; '': the end-of-text token
    max_new_tokens: int = count(200)  # tokens after the prompt
    num_samples: int = whole(1, low=1, high=10_000)  # texts for each prompt
    temperature: float = real(0.8, 1e-6, 1e6, or_zero=True)  # 0: always the most likely token
    top_k: int = whole(0)  # only the k most likely tokens; 0: off
    top_p: float = real(1.0, 1e-9, 1)  # only the likeliest that reach this probability; 1: off
    min_p: float = fraction(0.0)  # only tokens this fraction as likely as the likeliest; 0: off
    repetition_penalty: float = real(1.0, 1e-6, 1e6)  # > 1 makes seen tokens less likely; 1: off
    presence_penalty: float = real(0.0, -100, 100)  # less logit for drawn tokens; 0: off
    frequency_penalty: float = real(0.0, -100, 100)  # the same, for each time drawn; 0: off
    stop: tuple[str, ...] = ()  # strings that end a sample; not part of the sample
    seed: int = seed32(0)  # of the sampling; the same seed gives the same text
    chunk: int = count(16)  # tokens per update of streamed text and per check for stop strings
    draft_tokens: int = whole(0, high=32)  # guessed from repetitions, checked in one pass; 0: off
    weight_dtype: WeightType = WeightType.COMPUTE  # of matrices; int8: less memory, rounded


def finalize_sample(config: SampleConfig) -> None:
    """Checks the values.

    Raises:
        UserError: a value cannot work; the message names its key.
    """
    check_domains(config, 'config.sample')
    from_json_value(config.weight_dtype, WeightType, 'config.sample.weight_dtype')  # or raises
    if not all(config.stop):
        raise UserError(f'config.sample.stop={config.stop} must not hold an empty text')
