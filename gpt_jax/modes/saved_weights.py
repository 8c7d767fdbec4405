"""What the modes that use a trained run share: which of its weights, and opening it."""

import pathlib

from absl import flags as absl_flags

from gpt_jax import run as runs
from gpt_jax.config import RunConfig, finalize
from gpt_jax.parallel import runtime


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Which weights of the run."""
    absl_flags.DEFINE_string(
        'step', 'latest', 'checkpoint to use: a step, latest or best', flag_values=flags
    )
    absl_flags.DEFINE_enum(
        'weights', 'raw', ['raw', 'ema'], 'the weights, or their moving average', flag_values=flags
    )


def open_run(config: RunConfig, workdir: pathlib.Path) -> runs.Run:
    """The run in `workdir`, under `config` for all but its architecture.

    Raises:
        UserError: the folder is no run.
    """
    trained = runs.read_config(workdir)
    config.model, config.train.ema_decay = trained.model, trained.train.ema_decay
    runs.train_whole(config)
    tokenizer = runs.read_tokenizer(workdir)
    config = finalize(config, vocab_size=tokenizer.vocab_size)
    runtime.initialize(config.runtime)
    return runs.Run(workdir, config, tokenizer)
