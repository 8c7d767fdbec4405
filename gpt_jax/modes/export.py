"""Write a trained run's weights for other tools: transformers, llama.cpp, llama2.c, a browser."""

import dataclasses
import re

from absl import flags as absl_flags

from gpt_jax import object_store
from gpt_jax import run as runs
from gpt_jax.config_tree import to_json
from gpt_jax.errors import UserError
from gpt_jax.modes import saved_weights
from gpt_jax.modes.command import Command
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.program import make_program
from gpt_jax.weights.exporters import EXPORTERS, StoredType, find_exporter


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the weights, the folder, the format and the dtype."""
    saved_weights.define_flags(flags)
    absl_flags.DEFINE_string(
        'format',
        'hf',
        f'what to write: {", ".join(EXPORTERS)}, or a model_type of transformers',
        flag_values=flags,
    )
    absl_flags.DEFINE_string('out', '', 'the folder to write', flag_values=flags)
    absl_flags.DEFINE_enum(
        'dtype',
        None,
        [dtype.value for dtype in StoredType],
        "dtype of the tensors; default: the run's",
        flag_values=flags,
    )


def run(command: Command) -> int:
    """Writes the folder and prints the names of its files."""
    flags, config = command.flags, command.config
    workdir, overrides = command.workdir, command.overrides
    if not flags.out:
        raise UserError('--mode export needs --out DIR, the folder to write')
    exporter = find_exporter(flags.format)
    out = object_store.local_path(flags.out, key='--out')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'--out={out} is not empty; name a new folder')
    opened = saved_weights.open_run(config, workdir, overrides)
    program = make_program(opened.config, make_mesh(opened.config.mesh))
    step, params = runs.restore_weights(
        opened, step=flags.step, weights=flags.weights, abstract=program.abstract_params
    )
    model = opened.config.model
    credits = runs.read_credits(opened, step)
    if not credits.name:
        credits = dataclasses.replace(credits, name=opened.workdir.name)
    dtype = StoredType(flags.dtype or model.precision.params)
    names = exporter(
        out,
        model,
        params,
        opened.tokenizer,
        dtype=dtype,
        credits=credits,
        sampling=to_json(opened.config.sample),
    )
    # A page has many scripts: of a folder, its name is enough.
    written = dict.fromkeys(re.sub('/.*', '/', name) for name in names)
    print(f'{out} ({workdir}, {flags.weights} weights of step {step}): {", ".join(written)}')
    return 0
