"""Code shared by the modes that use a trained run: its flags, and opening the run."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags as absl_flags
from flax import linen as nn

from gpt_jax import run as runs
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import get_value, set_value
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import abstract_params
from gpt_jax.parallel import runtime
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import parameter_shardings, with_shardings
from gpt_jax.pretrained import COMPUTATION, free_length, keep_tokenizer
from gpt_jax.tokenizer.chat_template import with_template


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the checkpoint and its weights."""
    absl_flags.DEFINE_string(
        'step', 'latest', 'checkpoint to use: a step, latest or best', flag_values=flags
    )
    absl_flags.DEFINE_enum(
        'weights', 'raw', ['raw', 'ema'], 'the weights, or their moving average', flag_values=flags
    )


def open_run(config: RunConfig, workdir: pathlib.Path, overrides: Mapping[str, Any]) -> runs.Run:
    """Opens the run in `workdir` with its own architecture and otherwise with `config`.

    `overrides` may change how the model is computed, its context length unless positions are
    learned, and the chat template of the tokenizer.

    Raises:
        UserError: the folder is not a run, or `overrides` asks for another architecture or for
            an invalid chat template.
    """
    trained = runs.read_config(workdir)
    for key, value in _chosen(config, trained, overrides, workdir).items():
        set_value(trained, key, value)
    config.model, config.train.ema_decay = trained.model, 0.0  # no averaging without training
    runs.train_whole(config)
    template = overrides.get('data.chat_template', '')
    tokenizer = with_template(runs.read_tokenizer(workdir), template)
    config = finalize(config, vocab_size=tokenizer.vocab_size)
    runtime.initialize(config.runtime)
    return runs.Run(workdir, config, tokenizer)


def _chosen(
    ours: RunConfig, trained: RunConfig, overrides: Mapping[str, Any], workdir: pathlib.Path
) -> dict[str, Any]:
    """Returns the knobs of the model whose values in `overrides` differ from the run's."""
    keys = [key for key in sorted(overrides) if key.startswith('model.')]
    chosen = {key: get_value(ours, key) for key in keys}
    theirs = {key: get_value(trained, key, None) for key in keys}
    chosen = {key: value for key, value in chosen.items() if value != theirs[key]}
    free = (*COMPUTATION, *free_length(trained.model))
    for key in chosen:
        if key not in free:
            allowed = ', '.join(name.removeprefix('model.') for name in free)
            learned = ', and its learned positions end there' * (key == 'model.max_seq_len')
            raise UserError(
                f'config.{key}={chosen[key]}, but the run in {workdir} has '
                f'{theirs[key]}{learned}; leave it out. You may set {allowed}'
            )
    return chosen


def prepare_data(opened: runs.Run) -> pathlib.Path:
    """Prepares the run's data with the tokenizer and template kept in the run.

    The paths in its config may no longer exist.
    """
    config = opened.config
    if config.tokenizer.path:
        tokenizer = keep_tokenizer(opened.tokenizer, config.data)
        data = dataclasses.replace(config.data, chat_template='')
        config = dataclasses.replace(config, tokenizer=tokenizer, data=data)
    return runs.prepare_data(config)


def split_weights(config: RunConfig, overrides: Mapping[str, Any]) -> Any | None:
    """Returns the shapes and shardings of the weights; None if they are replicated.

    The mesh of the run's own config is ignored if it does not fit the devices of this machine.

    Raises:
        UserError: the mesh is set in `overrides`, and does not fit the devices.
    """
    try:
        mesh = make_mesh(config.mesh)
    except UserError:
        if any(key.startswith('mesh.') for key in overrides):
            raise
        return None
    boxed = abstract_params(config.model)
    shardings = parameter_shardings(boxed, mesh)
    if all(sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings)):
        return None
    return with_shardings(nn.unbox(boxed), shardings)
