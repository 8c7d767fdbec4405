"""Sampling defaults in the files of models: reading and writing them.

Values are named after the fields of `gpt_jax.inference.config.SampleConfig`. The caller checks
them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

NO_SAMPLING: Mapping[str, Any] = MappingProxyType({})
_RANDOM_KNOBS = ('temperature', 'top_k', 'top_p', 'min_p')
_KNOBS = (*_RANDOM_KNOBS, 'repetition_penalty', 'max_new_tokens')
_GGUF_KEYS = {
    'temperature': 'general.sampling.temp',
    'top_k': 'general.sampling.top_k',
    'top_p': 'general.sampling.top_p',
    'min_p': 'general.sampling.min_p',
    'repetition_penalty': 'general.sampling.penalty_repeat',
}


def read_generation_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sampling settings of a generation_config.json.

    `do_sample=false` means temperature 0; `do_sample=true` means temperature 1 unless one is given.
    Without `do_sample` transformers decodes greedily, but a given temperature is kept here.
    """
    sampling = {name: values[name] for name in _KNOBS if values.get(name) is not None}
    do_sample = values.get('do_sample')
    if do_sample is None:
        return sampling
    if do_sample is True:
        return {'temperature': 1.0, **sampling}
    if do_sample is False:
        return sampling | {'temperature': 0.0}
    return sampling | {'do_sample': do_sample}  # of a wrong type: the caller rejects it


def to_generation_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a generation_config.json; top_k=0 and top_p=1 override its defaults."""
    if not sampling:
        return {}
    is_random = sampling['temperature'] > 0
    left_out = () if is_random else _RANDOM_KNOBS
    stated = {name: sampling[name] for name in _KNOBS if name not in left_out}
    return {'do_sample': is_random, **stated}


def read_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sampling settings in the metadata of a GGUF file."""
    return {name: metadata[key] for name, key in _GGUF_KEYS.items() if key in metadata}


def to_gguf(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sampling settings as keys of a GGUF file."""
    return {key: sampling[name] for name, key in _GGUF_KEYS.items() if name in sampling}
