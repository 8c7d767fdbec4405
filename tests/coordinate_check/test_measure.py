"""Models of two widths, trained for real: flat under μP, and not without it."""

import numpy as np
import pytest

from gpt_jax.config import RunConfig, finalize
from gpt_jax.coordinate_check.measure import measure, widen
from gpt_jax.coordinate_check.report import is_flat, verdict
from gpt_jax.model.config import Parametrization
from gpt_jax.optim import AdamW

STEPS, FACTORS = 8, (1, 4)


def small(**model) -> RunConfig:
    config = RunConfig(optimizer=AdamW(learning_rate=0.005))
    config.model.num_layers, config.model.num_heads, config.model.d_model = 1, 4, 32
    config.model.max_seq_len, config.model.base.d_model = 16, 32
    for name, value in model.items():
        setattr(config.model, name, value)
    config.train.batch_size = 8
    return finalize(config, vocab_size=64)


@pytest.fixture(scope='module')
def checks():
    random = np.random.default_rng(0)
    rows = np.cumsum(random.integers(0, 4, (STEPS + 1, 8, 17)), -1) % 64
    batches = [{'tokens': tokens.astype(np.int32)} for tokens in rows]
    return {each: measure(small(), each, batches, factors=FACTORS) for each in Parametrization}


def test_mup_is_flat(checks):
    scales = checks[Parametrization.MUP]
    assert is_flat(scales), verdict(scales)
    layers = [scales.points.index(each) for each in ('attention_output', 'mlp_output')]
    assert (np.abs(scales.slopes[:, layers]) < 0.2).all(), scales.slopes


def test_standard_is_not(checks):
    scales = checks[Parametrization.STANDARD]
    assert not is_flat(scales)
    final = dict(zip(scales.points, scales.slopes[-1], strict=True))
    assert final['mlp_output'] > 0.7 and final['residual_after'] > 0.3, final


def test_at_the_base_width_both_train_alike_bit_for_bit(checks):
    mup, standard = checks.values()
    np.testing.assert_array_equal(mup.losses[0], standard.losses[0])
    np.testing.assert_array_equal(mup.values[0], standard.values[0])
    assert mup.losses[0][-1] < mup.losses[0][0]
    assert not np.array_equal(mup.losses[1], standard.losses[1])


def test_a_wider_model_trains_at_the_same_rate(checks):
    """As well as its base, where the standard one may not."""
    losses = checks[Parametrization.MUP].losses[:, -1]
    assert losses[1] < losses[0] + 0.05, losses


def test_heads_grow_in_number_or_in_width():
    wide = widen(small(), 4, Parametrization.MUP).model
    assert (wide.d_model, wide.d_ff, wide.num_heads, wide.head_dim) == (128, 512, 16, 8)
    config = small(base={'d_model': 32, 'num_heads': 4})
    wide = widen(config, 4, Parametrization.STANDARD).model
    assert (wide.d_model, wide.d_ff, wide.num_heads, wide.head_dim) == (128, 512, 4, 32)
    assert wide.parametrization == Parametrization.STANDARD
