"""Means over batches."""

import math
from types import SimpleNamespace

import pytest

from gpt_jax.evaluate import evaluate


def means(*batches: tuple[float, float, float]):
    names = ('cross_entropy', 'correct', 'weight')
    sums = [SimpleNamespace(**dict(zip(names, batch, strict=True))) for batch in batches]
    return evaluate(lambda _, batch: batch, None, sums, bytes_per_token=None)


def test_every_token_counts_the_same():
    result = means((6.0, 1.0, 3.0), (0.0, 0.0, 0.0), (2.0, 1.0, 1.0))
    assert (result.loss, result.accuracy, result.tokens) == (2.0, 0.5, 4)
    assert result.perplexity == pytest.approx(math.exp(2))


def test_no_token_is_no_loss():
    """As of conversations in whose windows the assistant says nothing: not the best of losses."""
    result = means((0.0, 0.0, 0.0))
    assert math.isnan(result.loss) and math.isnan(result.accuracy)
    assert result.row() == {'tokens': 0}
    assert 'nan' in result.describe()
