"""Sampling settings of sources, and those that exports write."""

import copy
import math

import pytest

from gpt_jax import files
from gpt_jax.config import RunConfig
from gpt_jax.config_tree import to_json
from gpt_jax.inference.config import SampleConfig
from gpt_jax.pretrained import adopt
from gpt_jax.weights import open_source
from gpt_jax.weights.exporters import EXPORTERS
from tests.weights.random_source import (
    LLAMA,
    bpe_tokenizer,
    make_model,
    random_params,
    write_folder,
)

DRAWN = SampleConfig(
    temperature=0.6, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.1, max_new_tokens=300
)
KNOBS = (
    'do_sample',
    'temperature',
    'top_k',
    'top_p',
    'min_p',
    'repetition_penalty',
    'max_new_tokens',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of transformers, whose generation_config.json the tests replace."""
    folder = tmp_path_factory.mktemp('source')
    write_folder(folder, **LLAMA)
    return folder


def adopted(where, chosen=None, sample=None) -> SampleConfig:
    config = RunConfig(sample=copy.copy(sample or SampleConfig()))
    adopt(open_source(str(where)), config, chosen or {})
    return config.sample


@pytest.mark.parametrize(
    'stated, expected',
    [
        ({}, {}),
        ({'do_sample': None, 'temperature': None, '_from_model_config': True}, {}),
        ({'do_sample': False}, {'temperature': 0.0}),
        ({'do_sample': False, 'temperature': 0.7}, {'temperature': 0.0}),
        ({'do_sample': True}, {'temperature': 1.0}),
        ({'do_sample': True, 'temperature': 0.6}, {'temperature': 0.6}),
        ({'temperature': 1, 'top_k': 50}, {'temperature': 1.0, 'top_k': 50}),
        ({'min_p': 0.1, 'top_p': 0.9}, {'min_p': 0.1, 'top_p': 0.9}),
        ({'repetition_penalty': 1.05}, {'repetition_penalty': 1.05}),
        ({'max_new_tokens': 2048, 'max_length': 20}, {'max_new_tokens': 2048}),
    ],
)
def test_a_generation_config_is_taken(folder, stated, expected):
    files.write_json(folder / 'generation_config.json', stated)
    assert adopted(folder) == SampleConfig(**expected)


@pytest.mark.parametrize('value', ['x', [1], {}, -1, 2**62, 10**400, math.nan, math.inf])
def test_an_absurd_setting_is_ignored_with_a_line(folder, value, capsys):
    files.write_json(folder / 'generation_config.json', dict.fromkeys(KNOBS, value))
    assert adopted(folder) == SampleConfig()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(KNOBS) and max(map(len, lines)) < 300
    for name in KNOBS:
        assert any(f'ignoring its sampling setting {name}=' in line for line in lines)


def test_the_user_decides(folder):
    files.write_json(folder / 'generation_config.json', {'temperature': 0.6, 'top_p': 0.5})
    chosen = SampleConfig(temperature=0.8, top_p=0.7)
    assert adopted(folder, {'sample.temperature': 0.8}, chosen) == chosen


@pytest.mark.parametrize('form', ['hf', 'safetensors', 'gguf'])
@pytest.mark.parametrize('sample', [DRAWN, SampleConfig(), SampleConfig(temperature=0.0)])
def test_settings_go_out_and_come_in_again(form, sample, tmp_path):
    model = make_model(**LLAMA)
    EXPORTERS[form](
        tmp_path,
        model,
        random_params(model),
        bpe_tokenizer(),
        dtype='float32',
        sampling=to_json(sample),
    )
    again = adopted(tmp_path / 'model.gguf' if form == 'gguf' else tmp_path)
    if form == 'gguf':  # which has no key for it
        again.max_new_tokens = sample.max_new_tokens
    assert again == sample


@pytest.mark.parametrize('sample', [DRAWN, SampleConfig(), SampleConfig(temperature=0.0)])
def test_transformers_takes_the_settings(sample, tmp_path):
    transformers = pytest.importorskip('transformers')
    model = make_model(**LLAMA)
    EXPORTERS['hf'](
        tmp_path,
        model,
        random_params(model),
        bpe_tokenizer(),
        dtype='float32',
        sampling=to_json(sample),
    )
    config = transformers.GenerationConfig.from_pretrained(tmp_path)
    config.validate(strict=True)
    assert config.do_sample is (sample.temperature > 0)
    assert config.max_new_tokens == sample.max_new_tokens
    if config.do_sample:
        assert (config.top_k, config.top_p) == (sample.top_k, sample.top_p)
