"""Compile the real training step for devices you do not have: memory, traffic, fastest step."""

import dataclasses
import sys

import jax
from absl import flags as absl_flags

from gpt_jax import files
from gpt_jax import run as runs
from gpt_jax.compile_check.check import Attempt, Check, build, check_program, find_fitting
from gpt_jax.compile_check.topology import FORMS, describe_devices
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import INT32_MAX, to_json
from gpt_jax.errors import UserError
from gpt_jax.model.config import AttentionKernel
from gpt_jax.modes.command import Command
from gpt_jax.modes.vocabulary import known_vocab_size
from gpt_jax.parallel.mesh import ProgramKind
from gpt_jax.telemetry.chips import GIB
from gpt_jax.telemetry.report import format_table
from gpt_jax.train.memory import Overrides, format_overrides
from gpt_jax.train.startup_report import summarize

DOES_NOT_FIT = 2  # exit status


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the devices, the search and the output."""
    absl_flags.DEFINE_string('topology', '', f'the devices: {FORMS}', flag_values=flags)
    absl_flags.DEFINE_integer(
        'num_slices',
        1,
        'TPU slices of this topology',
        lower_bound=1,
        upper_bound=INT32_MAX,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        'check_tries',
        8,
        'compilations that look for overrides when the step does not fit; 0: none',
        lower_bound=0,
        upper_bound=INT32_MAX,
        flag_values=flags,
    )
    absl_flags.DEFINE_string('check_out', '', 'a JSON file to write', flag_values=flags)


def run(command: Command) -> int:
    """Compiles, prints, and writes the JSON; returns exit status 0 if the step fits."""
    flags, config, overrides = command.flags, command.config, command.overrides
    if not flags.topology:
        raise UserError(f'--mode compile_check needs --topology: {FORMS}')
    jax.config.update('jax_platforms', 'cpu')  # leave the accelerators of this machine alone
    devices = describe_devices(flags.topology, num_slices=flags.num_slices)
    notes = _adapt(config, devices[0], num_slices=flags.num_slices)
    config = finalize(config, vocab_size=known_vocab_size(config))
    program = build(config, devices)
    title = f'compile_check on {flags.topology}'
    title += f', {flags.num_slices} slices' if flags.num_slices > 1 else ''
    print('\n'.join([format_table(title, summarize(program, config)), *notes]), flush=True)
    check = check_program(program, config)
    print(format_table('memory per device', _memory_rows(check)), flush=True)
    if check.traffic is not None:
        print(format_table('sent per device and step', _traffic_rows(check)))
    if check.roofline is not None:
        print(format_table(_ROOFLINE, _roofline_rows(check)), flush=True)
    attempts: list[Attempt] = []
    if not check.fits and flags.check_tries:
        print('looking for what fits; each candidate is compiled', flush=True)
        attempts = find_fitting(
            program, config, limit=check.limit_bytes, most=flags.check_tries, report=_announce
        )
        print(_format_attempts(attempts), flush=True)
    if flags.check_out:
        report = {
            'topology': flags.topology,
            'num_slices': flags.num_slices,
            'device_kind': devices[0].device_kind,
            'device_count': program.mesh.size,
            'jax': jax.__version__,
            'notes': notes,
            **dataclasses.asdict(check),
            'attempts': [dataclasses.asdict(attempt) for attempt in attempts],
            'command': sys.argv,
            'overrides': overrides,
            'git_commit': runs.git_commit(),
            'config': to_json(config),
        }
        files.write_json(flags.check_out, report)
    return 0 if check.fits else DOES_NOT_FIT


def _adapt(config: RunConfig, device: jax.Device, *, num_slices: int) -> list[str]:
    """Adapts the config to the topology; returns notes to print.

    Raises:
        UserError: the config asks for the pmap program.
    """
    if config.mesh.program == ProgramKind.PMAP:
        raise UserError(
            '--mode compile_check describes the jitted program: set config.mesh.program=jit'
        )
    if num_slices > 1:
        config.mesh.slices = num_slices
    is_gpu = device.platform != 'tpu'
    execution = config.model.execution
    may_be_cudnn = execution.attention_kernel in (AttentionKernel.AUTO, AttentionKernel.CUDNN)
    if is_gpu and may_be_cudnn and config.mesh.context == 1:
        execution.attention_kernel = AttentionKernel.XLA
        return [
            "note: cuDNN's attention cannot be traced without a GPU, so this is the step with the "
            'xla kernel, which keeps the scores: a real run needs less memory and time'
        ]
    return []


def _announce(overrides: Overrides) -> None:
    print(f'  compiling {format_overrides(overrides)}', flush=True)


def _size(size: float | None) -> str:
    if size is None:
        return 'unknown'
    return f'{size / GIB:,.2f} GiB' if size >= GIB / 10 else f'{size / 2**20:,.2f} MiB'


def _memory_rows(check: Check) -> dict[str, str]:
    """Returns whether the step fits, and the parts of its memory."""
    verdict = 'fits' if check.fits else 'DOES NOT FIT'
    rows = {
        'verdict': f'{verdict}: {_size(check.peak_bytes)} of {_size(check.limit_bytes)}',
        'parameters': _size(check.parameters),
        'optimizer state': _size(check.optimizer_state),
        'gradients': _size(check.gradients),
        'logits': f'{_size(check.logits)} (a chunk of the loss, and its gradient)',
        'activations': f'{_size(check.activations)}, with all other workspace',
        'code': _size(check.code),
        'by formula': f'{_size(check.estimated_peak_bytes)} (train/memory.py)',
        'compiled in': f'{check.compile_seconds:.1f} s',
    }
    if check.message:
        rows['XLA says'] = check.message
    return rows


def _traffic_rows(check: Check) -> dict[str, str]:
    rows = {
        each.kind: f'{each.sent_bytes / 1e9:,.3f} GB in {each.calls:,} calls'
        + (
            f', {each.network_bytes / 1e9:,.3f} GB of it over the network'
            * (each.network_bytes > 0)
        )
        for each in check.traffic.traffic
    }
    if check.traffic.unknown_loops:
        rows['loops'] = f'{check.traffic.unknown_loops} of unknown length are counted once'
    return rows or {'nothing': 'one device'}


_ROOFLINE = 'estimate: the roofline of published peaks. Nothing ran; a real step is slower'


def _roofline_rows(check: Check) -> dict[str, str]:
    roofline = check.roofline
    resources = {
        'compute': roofline.compute_seconds,
        'memory': roofline.memory_seconds,
        'interconnect': roofline.interconnect_seconds,
        'network': roofline.network_seconds,
    }
    rows = {
        name: 'unknown bandwidth' if seconds is None else f'{1e3 * seconds:,.2f} ms'
        for name, seconds in resources.items()
    }
    serial = roofline.step_seconds / roofline.serial_seconds
    return rows | {
        'step': f'{1e3 * roofline.serial_seconds:,.2f} ms if nothing overlaps, '
        f'{1e3 * roofline.step_seconds:,.2f} ms if all does (bound by {roofline.bound})',
        'tokens': f'{serial * roofline.tokens_per_second:,.0f} to '
        f'{roofline.tokens_per_second:,.0f} a second',
        'MFU': f'{serial * roofline.mfu:.1%} to {roofline.mfu:.1%}',
    }


def _format_attempts(attempts: list[Attempt]) -> str:
    """Formats the overrides that fit, to be copied."""
    found = [attempt for attempt in attempts if attempt.check.fits]
    if not found:
        return 'nothing that was tried fits: use more devices, or a smaller model'
    rows = {
        format_overrides(attempt.overrides): f'{_size(attempt.check.peak_bytes)}'
        + (
            f', at best {1e3 * attempt.check.roofline.step_seconds:,.1f} ms per step'
            if attempt.check.roofline
            else ''
        )
        for attempt in found
    }
    return format_table('these fit, by compiling them', rows)
