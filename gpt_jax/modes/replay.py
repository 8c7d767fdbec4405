"""Show the batch of one training step: its texts, and the loss of each token."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags as absl_flags

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.config import RunConfig
from gpt_jax.config_tree import INT32_MAX
from gpt_jax.data.mixture import open_sources
from gpt_jax.data.pipeline import TrainPipeline, make_train_pipeline
from gpt_jax.data.skipped import parse_skip_steps
from gpt_jax.data.split import TRAIN
from gpt_jax.errors import UserError
from gpt_jax.inspector.replay import replay
from gpt_jax.inspector.replay_terminal import print_replay
from gpt_jax.modes import saved_weights
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.telemetry.metrics import read_rows
from gpt_jax.telemetry.progress import Progress
from gpt_jax.telemetry.report import format_table
from gpt_jax.train.program import Program, make_program

SHOWN = 4  # sequences on the terminal


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the step, the sequences that are printed, and the page."""
    absl_flags.DEFINE_integer(
        'step',
        None,
        'the step, as in the rows of metrics.jsonl',
        lower_bound=1,
        upper_bound=INT32_MAX,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        'limit',
        SHOWN,
        'sequences to print, those with the largest loss first',
        lower_bound=0,
        upper_bound=INT32_MAX,
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        'out', '', 'the page (default: replay_<step>.html in the workdir)', flag_values=flags
    )


def run(command: Command) -> int:
    """Prints the sequences with the largest losses; writes the page with all of them."""
    flags, workdir = command.flags, command.workdir
    if flags.step is None:
        raise UserError('--mode replay needs --step N, the step whose batch is shown')
    name = f'replay_{flags.step}.html'
    path = object_store.to_path(flags.out, key='--out') if flags.out else workdir / name
    files.check_writable(path, key='--out')  # before the work
    opened = saved_weights.open_run(command.config, workdir, command.overrides)
    config = opened.config
    if flags.step > config.train.num_steps:
        raise UserError(
            f'--step={flags.step} is not a step of {workdir}, which has 1 to '
            f'{config.train.num_steps}'
        )
    saved, meta = _nearest(opened, flags.step)
    program = _make_program(config, command.overrides)
    sources = open_sources(
        saved_weights.prepare_data(opened), config.data, split=TRAIN, tokenizer=opened.tokenizer
    )
    pipeline = make_train_pipeline(
        sources,
        seq_len=config.model.max_seq_len,
        batch_size=config.train.batch_size,
        seed=config.seed,
        windows=config.data.windows,
        segment_ids=config.data.segment_ids,
        order=parse_skip_steps(config.data.skip_steps),
    )
    _check_data(pipeline, meta, workdir)
    _, params = runs.restore_weights(
        opened, step=saved, weights='raw', abstract=program.abstract_params
    )
    with Progress(
        config.train.batch_size,
        unit='sequences',
        description='replay',
        quiet=not peers.is_primary(),
    ) as progress:
        result = replay(
            program,
            params,
            pipeline,
            opened.tokenizer,
            step=flags.step,
            sources=[source.shards.name for source in sources],
            rows_per_call=config.eval.batch_size,
            advance=progress.update,
        )
    if not peers.is_primary():
        return 0
    order = pipeline.order
    title = f'Step {flags.step} of {workdir}'
    facts = {
        'batch': f'{config.train.batch_size:,} sequences of {config.model.max_seq_len:,} tokens',
        'loss': f'{result.mean:.4f} nats per token, {_describe_weights(saved, flags.step)}',
        'recorded': _recorded(workdir, flags.step, config),
        'data': ', '.join(result.sources),
        'leave out': f'--config.data.skip_steps={order.spell_with(order.batch_of(flags.step))}',
    }
    print(format_table(title, facts))
    print_replay(result, limit=flags.limit)
    size = result.save(path, title=title, facts=facts)
    print(f'\nwrote {path} ({size / 1e3:,.0f} kB); open it in a browser')
    return 0


def _nearest(opened: runs.Run, step: int) -> tuple[int, Mapping[str, Any]]:
    """Returns the last checkpoint before a step, else the first after it, and its meta.

    Raises:
        UserError: there is none, or it holds no training.
    """
    with Checkpointer(opened.checkpoints, opened.config.checkpoint, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f'{opened.workdir} has no checkpoint yet; train first')
        before = [each for each in steps if each < step]
        nearest = max(before) if before else min(steps)
        meta = checkpoints.meta(nearest)
    if not runs.is_training(meta):
        raise UserError(f'{opened.workdir} holds weights and no training, so no step of one')
    return nearest, meta


def _describe_weights(saved: int, step: int) -> str:
    if saved == step - 1:
        return f'with the weights of checkpoint {saved}, those that the step began with'
    if saved < step:
        return f'with the weights of checkpoint {saved}, {step - 1 - saved} steps before the step'
    return f'with the weights of checkpoint {saved}, which have learned from it (none is older)'


def _make_program(config: RunConfig, overrides: Mapping[str, Any]) -> Program:
    """Returns the run's program, on devices of this machine if the run's mesh does not fit it.

    Raises:
        UserError: the mesh is set in `overrides`, and does not fit the devices.
    """
    try:
        return make_program(config, make_mesh(config.mesh))
    except UserError:
        if any(key.startswith('mesh.') for key in overrides):
            raise
    micro_batch = config.train.batch_size // (config.train.grad_accumulation or 1)
    count = math.gcd(micro_batch, config.eval.batch_size, jax.device_count())
    mesh = MeshConfig(data=count)
    return make_program(dataclasses.replace(config, mesh=mesh), make_mesh(mesh))


def _check_data(pipeline: TrainPipeline, meta: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Raises UserError if the data is no longer what the run was trained on."""
    if meta['data'] != pipeline.identity:
        raise UserError(
            f'the batches of {workdir} cannot be shown: the data here is not what it was trained '
            f'on (the corpus changed, or a --config.data override)'
        )


def _recorded(workdir: pathlib.Path, step: int, config: RunConfig) -> str:
    """Returns the training loss that `metrics.jsonl` has for a step."""
    try:
        rows = read_rows(workdir)
    except FileNotFoundError:
        rows = []
    losses = {row['step']: row['train/loss'] for row in rows if row.get('train/loss') is not None}
    row = min((each for each in losses if each >= step), default=None)
    if row is None:
        return 'metrics.jsonl has no row at or after this step'
    before = max((each for each in losses if each < row), default=0)
    mean = '' if row - before == 1 else f', the mean of the steps after {before}'
    dropouts = (config.model.dropouts.residual, config.model.dropouts.attention)
    dropout = ', with dropout, which is off here' if any(dropouts) else ''
    return f'{losses[row]:.4f} in the row of step {row}{mean}{dropout}'
