"""A run made of weights that exist: which of its knobs are the source's."""

import pathlib
from collections.abc import Mapping
from typing import Any

from gpt_jax import object_store
from gpt_jax import run as runs
from gpt_jax.checkpoint.manifest import list_steps
from gpt_jax.config import RunConfig
from gpt_jax.config_tree import check_domains, from_json, to_json
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

# How a model is computed, which changes neither a parameter nor, but for rounding, a logit.
COMPUTATION = ('attention_kernel', 'compute_dtype', 'matmul_precision', 'scan_layers', 'remat')
# The knobs of the model that whoever trains from given weights may choose.
FREE = (*COMPUTATION, 'dropout', 'attention_dropout', 'init_std', 'param_dtype')


def adopt(source: Source, config: RunConfig, chosen: Mapping[str, Any]) -> TableTokenizer:
    """Makes `config` the source's in place; returns the tokenizer.

    Args:
      source: an opened source.
      config: the config of the run to be.
      chosen: what the user set, by key below config: 'model.param_dtype'.

    Raises:
        UserError: the user set something that only the source decides, or there is no tokenizer,
            or it has more ids than the model.
    """
    model = {key[6:]: value for key, value in chosen.items() if key.startswith('model.')}
    free = _free(source.model)
    for name in model:
        if name not in free:
            raise UserError(
                f'config.model.{name} is decided by {source.name}; to be chosen are '
                f'{", ".join(free)}'
            )
    values = {name: getattr(config.model, name) for name in model}
    config.model = from_json(to_json(source.model), ModelConfig)
    for name, value in values.items():
        setattr(config.model, name, value)
    tokenizer = _tokenizer(source, config, chosen)
    template = source.chat_template or tokenizer.chat_template  # some files hold an empty one
    tokenizer = tokenizer.with_chat(template=template)
    tokenizer = with_template(tokenizer, chosen.get('data.chat_template', ''))
    size = config.model.vocab_size
    if tokenizer.vocab_size == size + 1 and tokenizer.special_tokens.get(END_OF_TEXT) == size:
        # It was added to a vocabulary that has none of that name.
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

    A value that cannot be is ignored with a line that says so: no weight depends on it.
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


def adopt_run(
    config: RunConfig, workdir: pathlib.Path, chosen: Mapping[str, Any], *, fresh: bool
) -> None:
    """Gives `config` the architecture and the tokenizer of `config.train.init_from`, in place.

    A run that has saved a checkpoint holds both itself: its source may be gone.

    Args:
      config: the config of the run to be.
      workdir: its folder.
      chosen: what the user set, by key below config.
      fresh: the run begins anew, whatever its folder holds.

    Raises:
        UserError: there is no run, or `config` asks for another architecture.
    """
    folder = object_store.to_path(config.train.init_from, key='config.train.init_from')
    if not fresh and list_steps(workdir / runs.CHECKPOINTS):
        folder = workdir
    if not (folder / runs.CONFIG).is_file():
        raise UserError(
            f'config.train.init_from={folder} holds no run: it has no {runs.CONFIG}; name the '
            f'workdir of a run, or make one with --mode import_weights'
        )
    source, tokenizer = runs.read_config(folder).model, runs.read_tokenizer(folder)
    default, ours, theirs = map(to_json, (ModelConfig(), config.model, source))
    wanted = {key for key in ours if ours[key] != default[key] or f'model.{key}' in chosen}
    wrong = [key for key in wanted if key not in _free(source) and ours[key] != theirs[key]]
    if wrong:
        values = ', '.join(f'{key}={ours[key]} (it has {theirs[key]})' for key in sorted(wrong))
        raise UserError(
            f'config.model of {folder} is another: {values}; leave these out, and the model is '
            f'that of config.train.init_from'
        )
    for key in theirs.keys() - set(FREE) - (wanted & {*_free(source)}):
        setattr(config.model, key, getattr(source, key))
    config.tokenizer = keep_tokenizer(tokenizer, config.data)


def keep_tokenizer(tokenizer: TableTokenizer, data: DataConfig) -> TokenizerConfig:
    """The config that prepares data with a run's tokenizer, of which the cache gets a copy.

    The copy's name depends on nothing but the tokenizer, so that the config is the same again.
    """
    content = [tokenizer.fingerprint(), tokenizer.chat_template, dict(tokenizer.named_tokens)]
    kept = locations.cache_folder(data) / 'tokenizers' / hash_of(content)[:16]
    if not kept.is_dir():
        keep(tokenizer, kept)
    return TokenizerConfig(kind=tokenizer.kind, path=str(kept))


def _free(model: ModelConfig) -> tuple[str, ...]:
    """The knobs that weights of this architecture leave open."""
    return FREE if model.position == PositionKind.LEARNED else (*FREE, 'max_seq_len')


def _tokenizer(source: Source, config: RunConfig, chosen: Mapping[str, Any]) -> TableTokenizer:
    """The user's, else the source's."""
    if {'tokenizer.kind', 'tokenizer.path'} & set(chosen):
        return make_tokenizer(config.tokenizer, tuple)
    if source.tokenizer is None:
        raise UserError(
            f'{source.name} has no tokenizer; name one: --config.tokenizer.kind=bpe '
            f'--config.tokenizer.path=FILE (also char, sentencepiece or byte)'
        )
    return source.tokenizer
