"""Turn the corpus into token shards for training; train does this if they are missing."""

from absl import flags as absl_flags

from gpt_jax import run as runs
from gpt_jax.config import finalize
from gpt_jax.data import remote_shards
from gpt_jax.data.prepare import filled_splits
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.data.shards import Shards
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers
from gpt_jax.telemetry.report import format_table


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flag for publishing; `--config.data.*` and `--config.tokenizer.*` do the rest."""
    absl_flags.DEFINE_string(
        'publish', '', 'a folder gs://… or s3://… to copy the shards to', flag_values=flags
    )


def run(command: Command) -> int:
    """Prepares the data of `config` and prints the size of each split."""
    flags, config = command.flags, command.config
    finalize(config, vocab_size=1)
    if flags.publish:  # fail before the work
        remote_shards.target_folder(flags.publish, key='--publish')
    folder = runs.prepare_data(config)
    tokenizer = make_run_tokenizer(folder, config.tokenizer)
    if flags.publish and peers.is_primary():
        remote_shards.publish(folder, flags.publish, key='--publish')
    rows = {
        split: f'{Shards.open(folder, split, tokenizer=tokenizer).num_tokens:,} tokens'
        for split in filled_splits(config.data)
    }
    if flags.publish:
        rows['published'] = f'--config.data.corpus=shards --config.data.source={flags.publish}'
    print(format_table(f'{folder}, {tokenizer.kind} of {tokenizer.vocab_size:,}', rows))
    return 0
