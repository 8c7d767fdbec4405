"""The knobs of generation."""

import dataclasses

from gpt_jax.errors import UserError


@dataclasses.dataclass(slots=True, kw_only=True)
class SampleConfig:
    """How text is drawn, by `--mode generate` and now and then during training."""

    every: int = 0  # steps between samples during training; 0: only at the end
    prompt: str = ''  # where the text begins; '': the end-of-text token
    max_new_tokens: int = 200  # tokens after the prompt
    num_samples: int = 1  # texts for each prompt
    temperature: float = 0.8  # 0: always the most likely token
    top_k: int = 0  # only the k most likely tokens; 0: off
    top_p: float = 1.0  # only the likeliest tokens that reach this probability; 1: off
    min_p: float = 0.0  # only tokens at least this fraction as likely as the likeliest; 0: off
    repetition_penalty: float = 1.0  # tokens seen before become this much less likely; 1: off
    stop: tuple[str, ...] = ()  # texts that end a sample; they are not part of it
    seed: int = 0  # of the sampling; the same seed gives the same text
    chunk: int = 16  # tokens between two looks at a streamed text, or for stop strings
    draft_tokens: int = 0  # guessed from the text's own repetitions, checked in one pass; 0: off


def finalize_sample(config: SampleConfig) -> None:
    """Checks the values.

    Raises:
        UserError: a value cannot work; the message names its key.
    """
    c, key = config, 'config.sample.'
    rules = {
        'every': (c.every >= 0, 'must not be negative'),
        'max_new_tokens': (c.max_new_tokens >= 1, 'must be at least 1'),
        'num_samples': (c.num_samples >= 1, 'must be at least 1'),
        'temperature': (c.temperature >= 0, 'must not be negative; 0 is greedy'),
        'top_k': (c.top_k >= 0, 'must not be negative; 0 is off'),
        'top_p': (0 < c.top_p <= 1, 'must be in (0, 1]; 1 is off'),
        'min_p': (0 <= c.min_p < 1, 'must be in [0, 1); 0 is off'),
        'repetition_penalty': (c.repetition_penalty > 0, 'must be positive; 1 is off'),
        'stop': (all(c.stop), 'must not hold an empty text'),
        'chunk': (c.chunk >= 1, 'must be at least 1'),
        'draft_tokens': (0 <= c.draft_tokens <= 32, 'must be from 0 (off) to 32'),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise UserError(f'{key}{name}={getattr(c, name)!r} {rule}')
