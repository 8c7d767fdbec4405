"""Standard errors, perplexities, and results that are written and read again."""

import math

import numpy as np
import pytest

from gpt_jax.evaluate import perplexity
from gpt_jax.evaluate.scoring import Score
from gpt_jax.evaluate.task import Metric, Result, mean, ratio


def test_the_error_of_a_mean_is_the_sample_deviation_over_the_root_of_the_count():
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert mean(values).value == pytest.approx(0.6)
    assert mean(values).stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))
    assert math.isnan(mean([1.0]).stderr)


def test_the_error_of_a_ratio_is_what_repeated_samples_show():
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 40, (4000, 60))
    sums = counts * 2.0 + draw.normal(0, 3, counts.shape)
    ratios = [ratio(each, count) for each, count in zip(sums, counts, strict=True)]
    spread = np.std([each.value for each in ratios])
    assert np.mean([each.stderr for each in ratios]) == pytest.approx(spread, rel=0.05)


def test_perplexities_of_a_text():
    question = perplexity.question({'text': 'one  two\nthrée'})  # 3 words, 15 bytes
    scores = [[Score(((-6.0, 4), (-3.0, 2)), False)]]
    result = perplexity.summarize([question], scores)
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values == pytest.approx(
        {
            'token_perplexity': math.exp(9 / 6),
            'word_perplexity': math.exp(9 / 3),
            'byte_perplexity': math.exp(9 / 15),
            'bits_per_byte': 9 / 15 / math.log(2),
        }
    )
    assert result.metrics['token_perplexity'].stderr == 0  # both windows are 1.5 a token
    other = perplexity.summarize([question], [[Score(((-6.0, 4), (-6.0, 2)), False)]])
    token, word = (other.metrics[f'{name}_perplexity'] for name in ('token', 'word'))
    assert word.stderr / word.value == pytest.approx(2 * token.stderr / token.value)
    assert token.stderr > 0


def test_results_are_read_as_they_were_written():
    result = Result(
        rows=3,
        metrics={'acc': Metric(0.5, math.nan)},
        tables={'field': {'syntax': {'acc': Metric(0.25, 0.125)}}},
    )
    stored = result.to_json()
    assert stored['metrics'] == {'acc': 0.5, 'acc_stderr': None}
    again = Result.from_json(stored)
    assert again.tables == result.tables
    assert again.rows == 3
    assert math.isnan(again.metrics['acc'].stderr)
