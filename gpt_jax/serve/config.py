"""The config of `--mode serve`."""

import dataclasses

from gpt_jax.config_tree import check_domains, count, positive, whole


@dataclasses.dataclass(slots=True, kw_only=True)
class ServeConfig:
    """The size of the engine of `--mode serve`, and how long requests may wait and run."""

    rows: int = whole(8, low=1, high=4096)  # texts that are generated at the same time
    queue: int = count(64)  # texts that may wait for a row
    queue_seconds: float = positive(60.0)  # a text that waits longer fails
    request_seconds: float = positive(600.0)  # a text that takes longer, waiting included, fails
    prefill_chunk: int = whole(128, low=16)  # tokens of a prompt that are read at once
    stall_seconds: float = positive(0.25)  # that prompts may hold up other texts, per token
    drain_seconds: float = positive(30.0)  # that texts have to end when the server stops
    max_body_bytes: int = whole(4 * 2**20, low=1024, high=2**30)  # of a request over HTTP
    max_response_tokens: int = count(2**19)  # of one request's texts; alternatives count, too
    draft_tokens: int = whole(0, high=32)  # guessed from repetitions, for all texts; 0: off
    best: int = whole(20, low=1, high=100)  # likeliest tokens a request may ask for, per token


def finalize_serve(config: ServeConfig) -> None:
    """Checks the values.

    Raises:
        UserError: a value cannot work; the message names its key.
    """
    check_domains(config, 'config.serve')
