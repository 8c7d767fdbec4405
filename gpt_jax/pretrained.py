"""Configuration of a run that starts from existing weights, whose source fixes many knobs."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from gpt_jax import moved_keys, object_store
from gpt_jax import run as runs
from gpt_jax.checkpoint.manifest import list_steps
from gpt_jax.config import RunConfig
from gpt_jax.config_tree import (
    check_domains,
    flatten,
    from_json,
    get_value,
    set_value,
    to_json,
)
from gpt_jax.data import locations
from gpt_jax.data.config import DataConfig
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.model.config import ModelConfig, PositionKind
from gpt_jax.tokenizer import TokenizerConfig, keep, make_tokenizer
from gpt_jax.tokenizer.base import END_OF_TEXT, TableTokenizer
from gpt_jax.tokenizer.chat_template import with_template
from gpt_jax.weights import Source

# Knobs of the computation, which change no parameter and, except for rounding, no logit.
COMPUTATION = (
    'model.execution.attention_kernel',
    'model.execution.expert_kernel',
    'model.execution.scan_layers',
    'model.execution.remat',
    'model.precision.compute',
    'model.precision.matmul',
)
# Knobs of the model that may be changed when training from given weights.
FREE = (
    *COMPUTATION,
    'model.dropouts.residual',
    'model.dropouts.attention',
    'model.init.std',
    'model.precision.params',
)


def adopt(source: Source, config: RunConfig, chosen: Mapping[str, Any]) -> TableTokenizer:
    """Sets the model, tokenizer and sampling of `config` to the source's; returns the tokenizer.

    Args:
      source: an opened source.
      config: the config of the new run, changed in place.
      chosen: the user's overrides, by key below config: 'model.precision.params'.

    Raises:
        UserError: the user set a knob that is fixed by the source, or there is no tokenizer, or
            it has more ids than the model.
    """
    free = _free(source.model)
    values = {key: get_value(config, key) for key in chosen if key.startswith('model.')}
    for key in values:
        if key not in free:
            allowed = ', '.join(name.removeprefix('model.') for name in free)
            raise UserError(
                f'config.{key} is decided by {source.name}; leave it out. You may set {allowed}'
            )
    config.model = from_json(to_json(source.model), ModelConfig)
    for key, value in values.items():
        set_value(config, key, value)
    tokenizer = _tokenizer(source, config, chosen)
    template = source.chat_template or tokenizer.chat_template  # some files have an empty template
    tokenizer = tokenizer.with_chat(template=template)
    tokenizer = with_template(tokenizer, chosen.get('data.chat_template', ''))
    size = config.model.vocab_size
    if tokenizer.vocab_size == size + 1 and tokenizer.special_tokens.get(END_OF_TEXT) == size:
        # The token was added to a vocabulary without one of that name; the model has no row for it.
        eot_id = None if tokenizer.eot_id == size else tokenizer.eot_id
        tokenizer = tokenizer.with_ends(bos_id=tokenizer.bos_id, eot_id=None)
        tokenizer = tokenizer.with_ends(bos_id=tokenizer.bos_id, eot_id=eot_id)
    if tokenizer.vocab_size > size:
        raise UserError(
            f'{source.name} has {size} tokens, its tokenizer {tokenizer.vocab_size}; name the '
            f'right one with config.tokenizer.kind and config.tokenizer.path'
        )
    config.tokenizer = TokenizerConfig(kind=tokenizer.kind)
    _adopt_sampling(source, config.sample, chosen)
    return tokenizer


def _adopt_sampling(source: Source, config: SampleConfig, chosen: Mapping[str, Any]) -> None:
    """Sets the knobs that the source states and the user left at their defaults.

    Invalid values are ignored with a printed line, because no weight depends on them.
    """
    default = SampleConfig()
    for name, value in source.sampling.items():
        if f'sample.{name}' in chosen:
            continue
        try:
            stated = from_json({name: value}, SampleConfig)
            check_domains(stated)
        except UserError:
            shown = f'{value!r:.80}'
            print(f'{source.name}: ignoring its sampling setting {name}={shown}')
            continue
        if getattr(config, name) == getattr(default, name):
            setattr(config, name, getattr(stated, name))


def model_values(config: RunConfig, names: Iterable[str]) -> dict[str, Any]:
    """Returns the values of the model's knobs and groups with these names, by key below config."""
    chosen = tuple(moved_keys.rename(f'model.{name}') + '.' for name in names)
    values = flatten(to_json(config.model), 'model')
    return {key: value for key, value in values.items() if f'{key}.'.startswith(chosen)}


def adopt_run(
    config: RunConfig, workdir: pathlib.Path, chosen: Mapping[str, Any], *, fresh: bool
) -> None:
    """Sets the architecture and the tokenizer of `config` to those of `config.train.init_from`.

    If the run has saved a checkpoint, both are read from it, because the source may be gone.

    Args:
      config: the config of the new run, changed in place.
      workdir: its folder.
      chosen: the user's overrides, by key below config.
      fresh: whether to ignore checkpoints in `workdir`.

    Raises:
        UserError: the source is not a run, or `config` asks for another architecture.
    """
    folder = object_store.to_path(config.train.init_from, key='config.train.init_from')
    if not fresh and list_steps(workdir / runs.CHECKPOINTS):
        folder = workdir
    if not (folder / runs.CONFIG).is_file():
        raise UserError(
            f'config.train.init_from={folder} holds no run: it has no {runs.CONFIG}; name the '
            f'workdir of a run, or make one with --mode import_weights'
        )
    source, tokenizer = runs.read_config(folder), runs.read_tokenizer(folder)
    default, ours, theirs = (
        flatten(to_json(model), 'model') for model in (ModelConfig(), config.model, source.model)
    )
    wanted = {
        key for key in ours if ours[key] != default.get(key) or key.removesuffix('._type') in chosen
    }
    wrong = [
        key for key in wanted if key not in _free(source.model) and ours[key] != theirs.get(key)
    ]
    if wrong:
        values = ', '.join(
            f'{key.removeprefix("model.")}={ours[key]} (it has {theirs.get(key)})'
            for key in sorted(wrong)
        )
        raise UserError(
            f'config.model of {folder} is another: {values}; leave these out, and the model is '
            f'that of config.train.init_from'
        )
    model = from_json(to_json(source.model), ModelConfig)
    for key in (ours.keys() & FREE) | (wanted & {*_free(source.model)}):
        set_value(model, key.removeprefix('model.'), get_value(config, key))
    config.model = model
    config.tokenizer = keep_tokenizer(tokenizer, config.data)


def keep_tokenizer(tokenizer: TableTokenizer, data: DataConfig) -> TokenizerConfig:
    """Copies a run's tokenizer to the cache; returns the config for preparing data with it.

    The copy's name depends only on the tokenizer, so the same tokenizer gives the same config.
    """
    content = [tokenizer.fingerprint(), tokenizer.chat_template, dict(tokenizer.named_tokens)]
    kept = locations.cache_folder(data) / 'tokenizers' / hash_of(content)[:16]
    if not kept.is_dir():
        keep(tokenizer, kept)
    return TokenizerConfig(kind=tokenizer.kind, path=str(kept))


def _free(model: ModelConfig) -> tuple[str, ...]:
    """Returns the knobs that may be changed when training weights of this architecture."""
    return (*FREE, *free_length(model))


def free_length(model: ModelConfig) -> tuple[str, ...]:
    """Returns the key of the context length if no weight depends on it."""
    return () if model.position == PositionKind.LEARNED else ('model.max_seq_len',)


def _tokenizer(source: Source, config: RunConfig, chosen: Mapping[str, Any]) -> TableTokenizer:
    """Returns the user's tokenizer, else the source's."""
    if {'tokenizer.kind', 'tokenizer.path'} & set(chosen):
        return make_tokenizer(config.tokenizer, tuple)
    if source.tokenizer is None:
        raise UserError(
            f'{source.name} has no tokenizer; name one: --config.tokenizer.kind=bpe '
            f'--config.tokenizer.path=FILE (also char, sentencepiece or byte)'
        )
    return source.tokenizer
