"""Published parameter counts, to the last one where the last one is published."""

import pytest

from gpt_jax.model.config import ModelConfig, finalize_model
from gpt_jax.model.gpt import count_params
from gpt_jax.model.presets import PRESETS

EXACT = {
    'gpt1': 116_534_784,
    'gpt2_124m': 124_439_808,
    'gpt2_355m': 354_823_168,
    'gpt2_774m': 774_030_080,
    'gpt2_1558m': 1_557_611_200,
    'llama3_1b': 1_235_814_400,
    'olmoe_1b_7b': 6_919_161_856,
    'modern_124m': 162_151_680,  # 123,554,304 but for the untied output table
}
# Brown et al. 2020, table 2.1, in millions.
ROUNDED = {'gpt3_125m': 125, 'gpt3_350m': 350, 'gpt3_760m': 760, 'gpt3_1300m': 1300}


def _count(name: str) -> int:
    config = ModelConfig(**PRESETS[name])
    finalize_model(config)
    return count_params(config)


@pytest.mark.parametrize('name', EXACT)
def test_exact_counts(name):
    assert _count(name) == EXACT[name]


@pytest.mark.parametrize('name', ROUNDED)
def test_counts_to_the_published_rounding(name):
    assert _count(name) / 1e6 == pytest.approx(ROUNDED[name], rel=0.02)


def test_every_preset_is_counted():
    assert EXACT.keys() | ROUNDED.keys() == PRESETS.keys()
