"""Check the devices, hosts and folders of a run before it starts: differences, bandwidth."""

import socket

import jax
from absl import flags as absl_flags

from gpt_jax import run as runs
from gpt_jax.config import finalize
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.modes.command import Command
from gpt_jax.parallel import consistency, peers, probe, runtime
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.telemetry.report import format_table


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flag for the size of the bandwidth test."""
    absl_flags.DEFINE_integer(
        'doctor_megabytes',
        16,
        'size of the arrays that the collectives are timed on',
        lower_bound=1,
        upper_bound=65_536,
        flag_values=flags,
    )


def run(command: Command) -> int:
    """Checks everything and prints a table; an error is one line that names the process."""
    flags, config, workdir = command.flags, command.config, command.workdir
    finalize(config, vocab_size=1)
    runtime.initialize(config.runtime)
    runs.check_processes(config, workdir)
    mesh = make_mesh(config.mesh)
    folder = runs.prepare_data(config)
    tokenizer = make_run_tokenizer(folder, config.tokenizer)
    runs.check_data(folder, tokenizer, config.data)
    with runs.lock(workdir):
        seconds = probe.check_shared_folder(workdir)
    hosts = peers.gather('hosts', f'{socket.gethostname()} ({jax.local_device_count()} devices)')
    facts = consistency.code_facts()
    rows = {
        'processes': f'{peers.num_processes()}, with the same code, config, data and versions',
        **{f'process {index}': host for index, host in enumerate(hosts)},
        'mesh': ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items()),
        'devices': f'{mesh.size} x {mesh.local_devices[0].device_kind}',
        'code': facts['code'],
        'versions': ', '.join(f'{name} {facts[name]}' for name in ('python', 'jax', 'flax')),
        'data': f'{folder}, {tokenizer.kind} of {tokenizer.vocab_size:,}',
        'workdir': f'{workdir}: written by one and read by all in {seconds * 1e3:.0f} ms',
    }
    if mesh.size > 1:
        bandwidth = probe.measure_bandwidth(mesh, megabytes=flags.doctor_megabytes)
        rows['all-reduce'] = f'{bandwidth.all_reduce / 1e9:.2f} GB/s per device'
        rows['all-gather'] = f'{bandwidth.all_gather / 1e9:.2f} GB/s per device'
    print(format_table('all is well', rows))
    return 0
