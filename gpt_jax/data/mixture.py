"""Mixture of several sources in one stream: maps the i-th window to its source."""

import dataclasses
import fractions
import math
import pathlib
from collections.abc import Sequence

from gpt_jax.data import remote_shards
from gpt_jax.data.config import DataConfig
from gpt_jax.data.shards import Shards
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer

ENDLESS = 2**62  # windows; grain computes lengths as floats and fails above 2**63


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a corpus and its relative share of the windows."""

    shards: Shards
    weight: float = 1.0


class Selection:
    """A map from the index of a window to (source, index in that source), in exact proportions.

    The windows of a source are spread as evenly as possible. Each look-up is a formula that takes
    time proportional to the number of sources. The interface is that of grain's
    DatasetSelectionMap, because grain's own mixture rounds the weights.
    """

    def __init__(self, weights: Sequence[float]):
        """Takes weights as decimal fractions: 0.3 is exactly 3/10, not the nearest float."""
        exact = [fractions.Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*(weight.denominator for weight in exact))
        self._weights = [int(weight * scale) for weight in exact]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        # Of the first n windows, the first source gets n - n * (left - w) // left, where w is its
        # weight and `left` the sum of all weights. The other sources share the rest the same way.
        before, after, left = index, index + 1, sum(self._weights)
        for source, weight in enumerate(self._weights):
            others_before = before * (left - weight) // left
            others_after = after * (left - weight) // left
            if others_before == others_after:
                return source, before - others_before
            before, after, left = others_before, others_after, left - weight
        raise AssertionError('the last source takes every window that is left')


def open_sources(
    folder: str | pathlib.Path, config: DataConfig, *, split: str, tokenizer: Tokenizer
) -> list[Source]:
    """Opens the corpus that `prepare` made and the folders of `config.mixture`.

    Args:
      folder: the result of `prepare`.
      config: gives the weights.
      split: 'train' or 'validation'.
      tokenizer: the tokenizer of the run; all shards must have been made with it.

    Raises:
        UserError: a folder is missing, was made with another tokenizer, or a weight is invalid.
    """
    _check_weight('config.data.weight', config.weight)
    sources = [Source(Shards.open(folder, split, tokenizer=tokenizer), config.weight)]
    for name, weight in parse_mixture(config):
        key = f"config.data.mixture='{name}={weight:g}'"
        local = remote_shards.local_folder(name, config, key='config.data.mixture')
        try:
            sources.append(Source(Shards.open(local, split, tokenizer=tokenizer), weight))
        except UserError as error:
            raise UserError(f'{key}: {error}') from error
    return sources


def parse_mixture(config: DataConfig) -> list[tuple[str, float]]:
    """Returns the folders of `config.mixture` and their weights.

    Raises:
        UserError: an entry is not FOLDER=WEIGHT.
    """
    parsed = []
    for entry in config.mixture:
        name, _, number = entry.rpartition('=')
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or math.isnan(weight):
            raise UserError(
                f'config.data.mixture={entry!r} must be FOLDER=WEIGHT, such as /data/books=0.3'
            )
        _check_weight(f'the weight in config.data.mixture={entry!r}', weight)
        parsed.append((name, weight))
    return parsed


def tokens_per_pass(tokens: int, config: DataConfig) -> int:
    """Returns the tokens read from all sources per pass over the first one, of `tokens` tokens."""
    others = sum(weight for _, weight in parse_mixture(config))
    return round(tokens * (config.weight + others) / config.weight)


def _check_weight(name: str, weight: float) -> None:
    if not 0 < weight < math.inf:
        raise UserError(f'{name} is {weight:g}; it must be a positive number')
