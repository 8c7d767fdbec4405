"""How the makers of weights say that text is drawn from them: in and out of their files.

Values are under the names of `gpt_jax.inference.config.SampleConfig`; whoever takes them checks
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
    """Returns what a generation_config.json says.

    `do_sample` decides the temperature where it is false, or true without one. Where it is absent,
    transformers draws nothing at random, but a stated temperature is meant to be used.
    """
    sampling = {name: values[name] for name in _KNOBS if values.get(name) is not None}
    do_sample = values.get('do_sample')
    if do_sample is True:
        return {'temperature': 1.0, **sampling}
    if do_sample is None or do_sample is False:
        return sampling | ({} if do_sample is None else {'temperature': 0.0})
    return sampling | {'do_sample': do_sample}


def to_generation_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a generation_config.json; top_k=0 and top_p=1 undo its own defaults."""
    if not sampling:
        return {}
    is_random = sampling['temperature'] > 0
    left_out = () if is_random else _RANDOM_KNOBS
    stated = {name: sampling[name] for name in _KNOBS if name not in left_out}
    return {'do_sample': is_random, **stated}


def read_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the metadata of a GGUF file say."""
    return {name: metadata[key] for name, key in _GGUF_KEYS.items() if key in metadata}


def to_gguf(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a GGUF file."""
    return {key: sampling[name] for name, key in _GGUF_KEYS.items() if name in sampling}
