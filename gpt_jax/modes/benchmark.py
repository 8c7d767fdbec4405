"""Time the real training step on this machine: speed, MFU, memory, compilation, start-up."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags as absl_flags
from jax.sharding import Mesh

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.benchmark import profile
from gpt_jax.benchmark.decoding import measure_decoding
from gpt_jax.benchmark.machine import describe_machine
from gpt_jax.benchmark.start_up import StartUp
from gpt_jax.benchmark.training import TrainingBenchmark, synthetic_batches
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import INT32_MAX, to_json
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.errors import UserError
from gpt_jax.modes.command import Command
from gpt_jax.modes.vocabulary import known_vocab_size
from gpt_jax.parallel import peers, runtime
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.telemetry.report import format_table
from gpt_jax.train.program import Program, make_program
from gpt_jax.train.startup_report import summarize
from gpt_jax.train.trainer import Trainer

KERNELS_KEPT = 50  # kernels of a profile in the JSON, the longest ones


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the length, data and outputs of the measurement."""
    counts = {
        'benchmark_warmup': (3, 'steps before the first that is timed'),
        'benchmark_groups': (5, 'groups of steps; the median over them is the result'),
        'benchmark_steps': (10, 'steps in a group'),
        'profile_steps': (3, 'steps that --profile traces'),
        'decode_prompt': (0, 'tokens of a prompt, for --benchmark_decode; 0: 32, or what fits'),
        'decode_tokens': (
            0,
            'tokens to generate after the prompt; 0: 128, or what fits the context',
        ),
    }
    for name, (default, text) in counts.items():
        absl_flags.DEFINE_integer(
            name,
            default,
            text,
            lower_bound=min(default, 1),
            upper_bound=INT32_MAX,
            flag_values=flags,
        )
    absl_flags.DEFINE_boolean(
        'benchmark_data', False, "the run's data instead of random tokens", flag_values=flags
    )
    absl_flags.DEFINE_boolean(
        'benchmark_decode', False, 'time generation instead of training', flag_values=flags
    )
    absl_flags.DEFINE_multi_integer(
        'decode_batch',
        [1, 8, 64],
        'texts at a time; may be repeated',
        lower_bound=1,
        upper_bound=INT32_MAX,
        flag_values=flags,
    )
    absl_flags.DEFINE_string('benchmark_out', '', 'a JSON file to write', flag_values=flags)
    absl_flags.DEFINE_boolean(
        'profile', False, 'also trace some steps and show their kernels', flag_values=flags
    )
    absl_flags.DEFINE_string(
        'profile_dir', '', 'where the trace goes (default: WORKDIR/profile)', flag_values=flags
    )


def run(command: Command) -> int:
    """Measures and prints; writes only the files that a flag names."""
    flags, config = command.flags, command.config
    workdir, overrides = command.workdir, command.overrides
    if flags.profile and flags.benchmark_decode:
        raise UserError('--profile traces training steps; leave it out with --benchmark_decode')
    if flags.profile and object_store.is_remote(flags.profile_dir or workdir):
        raise UserError('--profile writes its trace to a disk: name a folder with --profile_dir')
    start_up = StartUp()
    start_up.mark('imports')
    runtime.initialize(config.runtime)
    config, program, batches = _open(config, start_up, data=flags.benchmark_data)
    print(format_table('benchmark', summarize(program, config)), flush=True)
    if flags.benchmark_decode:
        report = {'decoding': _measure_decoding(flags, config, program)}
    else:
        report = _measure_training(flags, config, program, batches, start_up, workdir)
    report |= {'machine': describe_machine(program.mesh), 'command': sys.argv}
    report |= {'overrides': overrides, 'git_commit': runs.git_commit(), 'config': to_json(config)}
    if flags.benchmark_out and peers.is_primary():
        files.write_json(flags.benchmark_out, report)
    return 0


def _measure_training(
    flags: absl_flags.FlagValues,
    config: RunConfig,
    program: Program,
    batches: Iterator[dict[str, np.ndarray]],
    start_up: StartUp,
    workdir: pathlib.Path,
) -> dict[str, Any]:
    """Times the step, prints the result, and traces it with --profile."""
    training = TrainingBenchmark(program, config, batches, start_up=start_up)
    report = training.measure(
        warmup=flags.benchmark_warmup,
        groups=flags.benchmark_groups,
        steps=flags.benchmark_steps,
    )
    print(format_table('training', _training_rows(report)), flush=True)
    report['data'] = 'pipeline' if flags.benchmark_data else 'random tokens'
    if flags.profile:
        del training  # frees its state; tracing compiles its own program
        folder = pathlib.Path(flags.profile_dir or workdir / 'profile')
        report['profile'] = _profile(config, program.mesh, batches, folder, flags.profile_steps)
    return report


def _measure_decoding(
    flags: absl_flags.FlagValues, config: RunConfig, program: Program
) -> list[dict[str, float]]:
    """Times generation with random weights, and prints the result."""
    context = config.model.max_seq_len
    prompt_tokens = flags.decode_prompt or max(1, min(32, context // 4))
    new_tokens = flags.decode_tokens or min(128, context - prompt_tokens)
    longest = prompt_tokens + new_tokens
    if longest > context or new_tokens < 2:
        raise UserError(
            f'--decode_prompt and --decode_tokens make {longest} tokens, the context holds '
            f'{context} (config.model.max_seq_len); draw 2 or more that fit'
        )
    state = program.init(jax.random.key(config.seed))
    rows = measure_decoding(
        config.model,
        program.join(state.params, state.base),
        batch_sizes=flags.decode_batch,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=flags.benchmark_groups,
        weight_dtype=config.sample.weight_dtype,
    )
    table = {
        f'batch {row["batch_size"]}': f'{row["decode_tokens_per_second"]:,.0f} tokens/s, '
        f'{row["ms_per_token"]:,.3f} ms per token (floor {row["floor_ms_per_token"]:,.3f} ms); '
        f'prefill {row["prefill_tokens_per_second"]:,.0f} tokens/s; '
        f'{row["compile_seconds"]:.1f} s to compile'
        for row in rows
    }
    if rows:
        table['cache'] = _describe_cache(rows[0])
    print(format_table('decoding', table), flush=True)
    return rows


def _describe_cache(row: dict[str, float]) -> str:
    """Describes the bytes per token of the cache, beside those of grouped-query attention."""
    text = f'{row["cache_bytes_per_token"]:,} bytes per token'
    grouped = row.get('grouped_query_cache_bytes_per_token')
    return text + (f' (grouped-query attention: {grouped:,})' if grouped else '')


def _open(
    config: RunConfig, start_up: StartUp, *, data: bool
) -> tuple[RunConfig, Program, Iterator[dict[str, np.ndarray]]]:
    """Returns the finalized config, its program, and its training batches."""
    jax.devices()
    start_up.mark('devices')
    if data:
        folder = runs.prepare_data(config)
        tokenizer = make_run_tokenizer(folder, config.tokenizer)
        config = finalize(config, vocab_size=tokenizer.vocab_size)
        start_up.mark('data')
        trainer = Trainer(config, tokenizer, folder)
        program, batches = trainer.program, trainer.pipeline.batches(0)
    else:
        vocab_size = known_vocab_size(config)
        config = finalize(config, vocab_size=vocab_size)
        program = make_program(config, make_mesh(config.mesh))
        _, processes = program.row_share
        batches = synthetic_batches(config, process_count=processes)
    start_up.mark('program')
    return config, program, batches


def _training_rows(report: dict[str, Any]) -> dict[str, str]:
    """Returns the rows of a report to print."""
    rows = {
        'step': f'{report["step_ms"]:,.2f} ms, median of {len(report["step_ms_groups"])} groups '
        f'of {report["steps_per_group"]} steps ({report["step_ms_min"]:,.2f} to '
        f'{report["step_ms_max"]:,.2f})',
        'tokens': f'{report["tokens_per_second"]:,.0f} a second, '
        f'{report["tokens_per_step"]:,} per step',
        'data wait': f'{1e3 * report["data_wait_seconds"]:,.3f} ms per step',
        'FLOPs': f'{report["model_flops_per_step"]:.4g} per step by formula, '
        f'{report["hardware_flops_per_step"]:.4g} with recomputation',
        'MFU': 'unknown: no published peak for this device',
        'memory': f'{report["peak_memory_bytes"] / 2**20:,.1f} MiB '
        f'({report["peak_memory_source"]})',
        'compilation': f'{report["trace_seconds"]:.2f} s to trace and lower, '
        f'{report["compile_seconds"]:.2f} s to compile (cache: {report["compile_cache"]})',
        'first step': f'{report["seconds_to_first_step"]:.2f} s after the '
        f'{report["seconds_to_first_step_since"]}: '
        + ', '.join(f'{phase} {s:.2f}' for phase, s in report['start_up_seconds'].items()),
    }
    if report['mfu'] is not None:
        rows['MFU'] = (
            f'{report["mfu"]:.2%} of {report["peak_flops"] / 1e12:,.1f} TFLOP/s (dense bfloat16) '
            f'per device; {report["hfu"]:.2%} with recomputation'
        )
    return rows


def _profile(
    config: RunConfig,
    mesh: Mesh,
    batches: Iterator[dict[str, np.ndarray]],
    folder: pathlib.Path,
    steps: int,
) -> dict[str, Any]:
    """Traces some steps; prints the breakdown of their time and returns it for the JSON."""
    with profile.exact_names():
        training = TrainingBenchmark(make_program(config, mesh, traced=True), config, batches)
    steps = training.whole_calls(steps)
    trace = profile.record(folder, lambda: training.run(steps))
    events = profile.read_events(trace, platform=mesh.devices.flat[0].platform)
    instructions = profile.read_instructions(training.compiled.as_text())
    result = profile.summarize(events, instructions, steps=steps)
    print(f'profile of {steps} steps, {result.step_ms:,.2f} ms each while traced')
    print(profile.format_profile(result))
    print(
        f'trace in {folder}: pip install xprof, then xprof --logdir {folder}; or open the '
        f'.trace.json.gz beside {trace.name} in https://ui.perfetto.dev'
    )
    kept = dataclasses.replace(result, kernels=result.kernels[:KERNELS_KEPT])
    return {'trace': str(trace), 'steps': steps, **dataclasses.asdict(kept)}
