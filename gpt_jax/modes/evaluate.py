"""Measure a trained run: loss, perplexity and bits per byte of a whole split or a text file."""

import pathlib
from typing import Any

from absl import flags as absl_flags

from gpt_jax import files
from gpt_jax import run as runs
from gpt_jax.config import RunConfig
from gpt_jax.data.encode import encode_text_file
from gpt_jax.data.shards import Shards
from gpt_jax.modes import saved_weights
from gpt_jax.parallel import peers
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.telemetry.report import format_table
from gpt_jax.train.program import make_program
from gpt_jax.train.session import evaluate_shards


def define_flags(flags: absl_flags.FlagValues) -> None:
    """What to measure on."""
    saved_weights.define_flags(flags)
    absl_flags.DEFINE_string('text', '', 'a text file to measure on', flag_values=flags)
    absl_flags.DEFINE_enum(
        'split',
        'validation',
        ['train', 'validation'],
        'the split of the run to measure on, whole',
        flag_values=flags,
    )


def run(
    flags: absl_flags.FlagValues,
    config: RunConfig,
    workdir: pathlib.Path,
    overrides: dict[str, Any],
) -> int:
    """Prints a table and writes `eval.json`."""
    opened = saved_weights.open_run(config, workdir)
    program = make_program(opened.config, make_mesh(opened.config.mesh))
    step, params = runs.restore_weights(
        opened,
        step=flags.step,
        weights=flags.weights,
        abstract=program.abstract_state.params,
    )
    if flags.text:
        shards = encode_text_file(flags.text, opened.tokenizer)
    else:
        folder = runs.prepare_data(opened.config)
        shards = Shards.open(folder, flags.split, tokenizer=opened.tokenizer)
    result = evaluate_shards(program, opened.config, params, shards, limit=0)
    source = flags.text or f'{flags.split} split'
    rows = {name: f'{value:,.6g}' for name, value in result.row().items()}
    print(format_table(f'{workdir}, step {step}, {source}', rows))
    if peers.is_primary():
        files.write_json(
            workdir / 'eval.json',
            {**result.row(), 'step': step, 'weights': flags.weights, 'source': source},
        )
    return 0
