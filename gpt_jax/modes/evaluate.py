"""Measure a trained run: its loss on a split or a text, or its accuracy in tasks."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from gpt_jax import files
from gpt_jax import run as runs
from gpt_jax.checkpoint.manifest import read_document
from gpt_jax.config_tree import INT32_MAX, to_json
from gpt_jax.data.config import DataConfig, Windows
from gpt_jax.data.encode import encode_text_file
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.data.shards import Shards
from gpt_jax.errors import UserError
from gpt_jax.evaluate import task_runs
from gpt_jax.evaluate.task import Metric, Result
from gpt_jax.evaluate.tasks import TASKS, check_names
from gpt_jax.fingerprint import fingerprint_leaves
from gpt_jax.inference.config import SampleConfig, WeightType, finalize_sample
from gpt_jax.inference.generate import Generator
from gpt_jax.model.weight_rounding import RoundedType, round_weights
from gpt_jax.modes import saved_weights
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.telemetry.progress import Progress
from gpt_jax.telemetry.report import format_columns, format_table
from gpt_jax.train.program import Program, make_program
from gpt_jax.train.trainer import evaluate_shards, make_scorer

RESULTS = 'evaluations'  # folder in the workdir, with a folder per checkpoint


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the weights and the data to measure on."""
    saved_weights.define_flags(flags)
    absl_flags.DEFINE_string('text', '', 'a text file to measure on', flag_values=flags)
    absl_flags.DEFINE_enum(
        'split',
        'validation',
        ['train', 'validation'],
        'the split of the run to measure on, whole',
        flag_values=flags,
    )
    absl_flags.DEFINE_list(
        'tasks', [], f'tasks to run in place of the loss: {", ".join(TASKS)}', flag_values=flags
    )
    absl_flags.DEFINE_list(
        'harness', [], 'tasks of lm-evaluation-harness to run instead', flag_values=flags
    )
    absl_flags.DEFINE_string(
        'task_data', None, 'files and folders with the rows of --tasks; or hub', flag_values=flags
    )
    absl_flags.DEFINE_integer(
        'task_limit',
        None,
        'only the first rows of each task or subtask',
        lower_bound=0,
        upper_bound=INT32_MAX,
        flag_values=flags,
    )
    absl_flags.DEFINE_boolean(
        'again', False, 'rerun tasks that have a stored result', flag_values=flags
    )


def run(command: Command) -> int:
    """Prints tables; writes `eval.json`, or one file per task in `evaluations/<step>`."""
    flags, config = command.flags, command.config
    workdir, overrides = command.workdir, command.overrides
    if len([name for name in ('tasks', 'harness', 'text') if flags[name].value]) > 1:
        raise UserError('give one of --tasks, --harness and --text')
    if flags['split'].present and (flags.tasks or flags.harness or flags.text):
        raise UserError('--split is for the data of the run; leave it out with other rows or texts')
    check_names(flags.tasks, key='--tasks')
    if flags.task_data is not None:
        config.eval.task_data = flags.task_data
    if flags.task_limit is not None:
        config.eval.task_limit = flags.task_limit
    opened = saved_weights.open_run(config, workdir, overrides)
    tasks = task_runs.load(
        flags.tasks, data=opened.config.eval.task_data, limit=opened.config.eval.task_limit
    )
    program = make_program(opened.config, make_mesh(opened.config.mesh))
    step, params = runs.restore_weights(
        opened,
        step=flags.step,
        weights=flags.weights,
        abstract=program.abstract_params,
    )
    name = f'{step}-ema' if flags.weights == 'ema' else f'{step}'
    if opened.config.sample.weight_dtype == WeightType.INT8:
        params = round_weights(params, opened.config.model, RoundedType.INT8)
        name += '-int8'
    folder = workdir / RESULTS / name
    title = f'{workdir}, step {name}'
    if tasks:
        results = _run_tasks(tasks, opened, program, params, folder=folder, again=flags.again)
        print(format_results(title, results))
    elif flags.harness:
        _run_harness(flags.harness, opened, program, params, folder=folder)
    else:
        source = flags.text or f'{flags.split} split'
        if flags.text:
            shards = encode_text_file(flags.text, opened.tokenizer)
        else:
            _check_data(opened, step, overrides)
            data = saved_weights.prepare_data(opened)
            shards = Shards.open(data, flags.split, tokenizer=opened.tokenizer)
        with Progress(
            shards.num_tokens - 1 if shards.all_learned else 0,
            unit='tokens',
            description='evaluate',
            quiet=not peers.is_primary(),
        ) as progress:
            progress.announce('compiling', log=False)
            result = evaluate_shards(
                program,
                opened.config,
                params,
                shards,
                windows=Windows.CONTINUOUS if flags.text else opened.config.data.windows,
                limit=0,
                advance=progress.update,
            )
        rows = {name: f'{value:,.6g}' for name, value in result.row().items()}
        print(format_table(f'{title}, {source}', rows))
        if peers.is_primary():
            files.write_json(
                workdir / 'eval.json',
                {
                    **result.row(),
                    'step': step,
                    'weights': flags.weights,
                    'weight_dtype': opened.config.sample.weight_dtype,
                    'source': source,
                },
            )
    return 0


def _check_data(opened: runs.Run, step: int, overrides: dict[str, Any]) -> None:
    """Rejects the default corpus for weights that were not trained on it.

    Raises:
        UserError: the weights were imported and no data is named.
    """
    trained = runs.is_training(read_document(opened.checkpoints, step)['meta'])
    named = any(key.startswith('data.') for key in overrides)
    if not trained and not named and opened.config.data.corpus == DataConfig().corpus:
        raise UserError(
            f'{opened.workdir} holds weights from elsewhere, and no data to measure them on: give '
            f'--text FILE, --tasks, or --config.data.corpus and --config.data.source'
        )


def _run_tasks(
    tasks: list[task_runs.LoadedTask],
    opened: runs.Run,
    program: Program,
    params: Any,
    *,
    folder: pathlib.Path,
    again: bool,
) -> dict[str, Result]:
    """Returns the result of each task; stored results for the same inputs are reused."""
    config = opened.config
    scorer = make_scorer(program, config, opened.tokenizer)
    limit = config.eval.task_limit  # a limited result never replaces a full one
    stored = task_runs.Results(
        folder.with_name(f'{folder.name}-limit-{limit}') if limit else folder,
        {
            'weights': hash_of(fingerprint_leaves(params)),
            'model': to_json(config.model),
            'tokenizer': opened.tokenizer.fingerprint(),
            'stride': config.eval.stride,
        },
    )
    results = {}
    for each in tasks:
        result = None if again else stored.find(each)
        if result is None:
            with Progress(
                each.num_requests,
                unit='requests',
                description=each.name,
                quiet=not peers.is_primary(),
            ) as progress:
                result = each.run(scorer, params, advance=progress.update)
            stored.write(each, result)
        else:
            print(f'{each.name} is done already, in {folder}; --again runs it again', flush=True)
        results[each.name] = result
    return results


def format_results(title: str, results: dict[str, Result]) -> str:
    """Formats a table of all results, then the tables by group."""

    def cells(metrics: dict[str, Metric], *first: str) -> list[list[str]]:
        return [
            [*first, name, *(f'{x:.4f}' if x < 1e5 else f'{x:.4g}' for x in (value, error))]
            for name, (value, error) in metrics.items()
        ]

    lines = [
        line
        for task, result in results.items()
        for line in cells(result.metrics, task, f'{result.rows:,}')
    ]
    parts = [format_columns(title, ['task', 'rows', 'metric', 'value', 'stderr'], lines)]
    for task, result in results.items():
        for kind, table in reversed(result.tables.items()):
            lines = [line for name, metrics in table.items() for line in cells(metrics, name)]
            header = [kind, 'metric', 'value', 'stderr']
            parts.append(format_columns(f'{task} by {kind} ({len(table)})', header, lines))
    return '\n'.join(parts)


def _run_harness(
    names: list[str],
    opened: runs.Run,
    program: Program,
    params: Any,
    *,
    folder: pathlib.Path,
) -> None:
    """Runs tasks of lm-evaluation-harness on the model."""
    from gpt_jax.evaluate import harness  # takes seconds to import

    config = opened.config

    @functools.cache
    def make_generator() -> Generator:  # only for tasks that generate
        return Generator(config.model, params, opened.tokenizer)

    def generate(prompts: Sequence[str], knobs: dict[str, Any]) -> list[str]:
        sampling = SampleConfig(**knobs)
        finalize_sample(sampling)
        return [each.text for each in make_generator().generate(prompts, sampling)]

    model = harness.HarnessModel(make_scorer(program, config, opened.tokenizer), params, generate)
    table, results = harness.run_tasks(
        model, names, definitions=config.eval.task_data, limit=config.eval.task_limit
    )
    print(table)
    if peers.is_primary():
        files.write_json(folder / 'harness.json', results)
