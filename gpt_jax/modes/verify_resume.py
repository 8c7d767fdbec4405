"""Prove on this machine that a killed run resumes exactly: kill one, resume it, compare.

Trains a few steps undisturbed, then the same steps with a SIGKILL in the middle and a resume. Each
part is a process of its own. Compares every loss and every bit of the final state. With several
devices, the killed run is also resumed on another mesh. There only the order of sums differs; the
largest relative difference of the metrics is reported.
"""

import copy
import dataclasses
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from absl import flags as absl_flags

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.checkpoint.manifest import list_steps, read_document
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import INT32_MAX, to_json
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.errors import UserError
from gpt_jax.modes.command import Command
from gpt_jax.parallel import consistency, peers
from gpt_jax.telemetry.report import format_table

CERTIFICATE = 'verify_resume.json'
DIFFERENT = 1  # exit status: the resumed run differs
ATTEMPTS = 5  # to kill a run between its first checkpoint and its end
# Metrics that do not depend on the clock.
COMPARED = ('train/loss', 'train/grad_norm', 'train/param_norm')


@dataclasses.dataclass(frozen=True)
class Trained:
    """The metrics and final state of a run of the comparison."""

    metrics: dict[tuple[int, str], float]
    leaves: dict[str, int]  # fingerprint of each array of the last checkpoint


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flag for the number of steps."""
    absl_flags.DEFINE_integer(
        'verify_steps',
        20,
        'steps to train; the run is killed half-way',
        lower_bound=4,
        upper_bound=INT32_MAX,
        flag_values=flags,
    )


def run(command: Command) -> int:
    """Prints a table and writes the certificate; returns exit status 1 if anything differs."""
    flags, config, workdir = command.flags, command.config, command.workdir
    if peers.num_processes() > 1:
        raise UserError(
            '--mode=verify_resume starts the processes that it needs; run it without --local_pod, '
            '--coordinator and a scheduler that starts several'
        )
    finalize(config, vocab_size=1)
    steps = flags.verify_steps
    config = _short(config, steps)
    scratch = workdir / 'verify_resume'
    with runs.lock(workdir):
        _remove(scratch)
        output = _train(config, scratch / 'undisturbed')
        killed_at = _train_killed(config, scratch / 'killed', steps=steps)
        _copy(scratch / 'killed', scratch / 'elsewhere')
        resumed_output = _train(config, scratch / 'killed')
        if 'resuming at step' not in resumed_output:
            raise UserError(f'the run in {scratch / "killed"} began anew instead of resuming')
        undisturbed, resumed = (_read(scratch / name, steps) for name in ('undisturbed', 'killed'))
        certificate = _compare(undisturbed, resumed) | {
            'steps': steps,
            'killed_at_step': killed_at,
            'resumed_at_step': int(re.search(r'resuming at step (\d+)', resumed_output)[1]),
            'devices': _table_row(output, 'devices'),
            'mesh': _table_row(output, 'mesh'),
            'versions': consistency.code_facts(),
            'git_commit': runs.git_commit(),
            'config': hash_of(to_json(config)),
            'xla_flags': _table_row(output, 'XLA options'),
        }
        other = _other_mesh(config, devices=int(certificate['devices'].partition(' ')[0] or 1))
        if other is not None:
            resumed = _train(other, scratch / 'elsewhere')
            moved = _compare(undisturbed, _read(scratch / 'elsewhere', steps))
            certificate['other_mesh'] = _table_row(resumed, 'mesh')
            certificate['other_mesh_largest_relative_difference_of_metrics'] = moved[
                'largest_relative_difference_of_metrics'
            ]
        files.write_json(workdir / CERTIFICATE, certificate)
        if certificate['exact']:
            _remove(scratch)
    print(format_table(_verdict(certificate), _rows(certificate, workdir)))
    return 0 if certificate['exact'] else DIFFERENT


def _short(config: RunConfig, steps: int) -> RunConfig:
    """Returns a short version of the run: one checkpoint half-way, metrics at every step."""
    config = copy.deepcopy(config)
    train = config.train
    train.num_steps, train.num_tokens, train.num_epochs = steps, 0, 0.0
    train.max_seconds = 0.0
    train.log_every, train.steps_per_call, train.sinks = 1, 1, ('jsonl',)
    config.checkpoint.save_every = steps // 2
    config.checkpoint.keep_last = 2
    config.eval.every = config.sample.every = 0
    config.sample.max_new_tokens = 1
    return config


def _other_mesh(config: RunConfig, *, devices: int) -> RunConfig | None:
    """Returns the run with its weights sharded, or replicated if they were sharded."""
    if devices == 1:
        return None
    config = copy.deepcopy(config)
    mesh = config.mesh
    whole = mesh.fsdp == mesh.tensor == mesh.context == 1
    mesh.data, mesh.fsdp = (mesh.slices, devices // mesh.slices) if whole else (devices, 1)
    mesh.tensor = mesh.context = 1
    return config


def _command(config: RunConfig, workdir: pathlib.Path) -> list[str]:
    files.write_json(workdir / runs.CONFIG, to_json(config))
    return [sys.executable, '-m', 'gpt_jax.main', f'--workdir={workdir}']


def _train(config: RunConfig, workdir: pathlib.Path) -> str:
    """Trains to the end in a new process; returns its standard output.

    Raises:
        UserError: the process failed.
    """
    done = subprocess.run(_command(config, workdir), capture_output=True, text=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ['']
        raise UserError(f'the run in {workdir} ended with status {done.returncode}: {lines[-1]}')
    return done.stdout


def _train_killed(config: RunConfig, workdir: pathlib.Path, *, steps: int) -> int:
    """Trains until the first checkpoint exists, kills the process, returns its last step.

    Raises:
        UserError: the run ended before it could be killed.
    """
    checkpoints = workdir / runs.CHECKPOINTS
    for _ in range(ATTEMPTS):
        _remove(workdir)
        process = subprocess.Popen(
            _command(config, workdir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while process.poll() is None and not list_steps(checkpoints):
                time.sleep(0.001)
        finally:
            process.kill()
            process.wait()
        if process.returncode == -signal.SIGKILL and steps not in list_steps(checkpoints):
            return max(step for step, _ in runs.read_metrics(workdir, COMPARED))
    raise UserError(
        f'in {ATTEMPTS} attempts the run was never killed between step {steps // 2} and {steps}; '
        f'raise --verify_steps'
    )


def _remove(folder: pathlib.Path) -> None:
    if object_store.is_remote(folder):
        object_store.remove_folder(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(folder: pathlib.Path, target: pathlib.Path) -> None:
    if object_store.is_remote(folder):
        object_store.copy_folder(folder, target)
    else:
        shutil.copytree(folder, target)


def _read(workdir: pathlib.Path, steps: int) -> Trained:
    leaves = read_document(workdir / runs.CHECKPOINTS, steps)['leaves']
    return Trained(
        metrics=runs.read_metrics(workdir, COMPARED),
        leaves={name: leaf['fingerprint'] for name, leaf in leaves.items()},
    )


def _compare(undisturbed: Trained, resumed: Trained) -> dict[str, Any]:
    """Returns hashes of both final states, and the differences."""
    if undisturbed.metrics.keys() != resumed.metrics.keys():
        raise UserError('the resumed run has rows of metrics for other steps than the undisturbed')
    differences = [
        abs(value - resumed.metrics[key]) / max(abs(value), 1e-30)
        for key, value in undisturbed.metrics.items()
    ]
    arrays = [name for name, leaf in undisturbed.leaves.items() if leaf != resumed.leaves[name]]
    return {
        'exact': not arrays and not any(differences),
        'largest_relative_difference_of_metrics': max(differences),
        'arrays': len(undisturbed.leaves),
        'arrays_that_differ': arrays,
        'state_undisturbed': hash_of(undisturbed.leaves),
        'state_resumed': hash_of(resumed.leaves),
    }


def _other_mesh_row(certificate: dict[str, Any]) -> dict[str, str]:
    if 'other_mesh' not in certificate:
        return {}
    difference = certificate['other_mesh_largest_relative_difference_of_metrics']
    return {'elsewhere': f'{certificate["other_mesh"]}: {difference:.3g} largest difference'}


def _table_row(output: str, name: str) -> str:
    """Returns a row of the table that a run prints at its start."""
    found = re.search(rf'^  {name} +(.+)$', output, re.MULTILINE)
    return found[1] if found else ''


def _verdict(certificate: dict[str, Any]) -> str:
    if certificate['exact']:
        return 'the resumed run equals the undisturbed one, bit for bit'
    return 'the resumed run differs from the undisturbed one'


def _rows(certificate: dict[str, Any], workdir: pathlib.Path) -> dict[str, str]:
    differing = certificate['arrays_that_differ']
    rows = {
        'devices': certificate['devices'],
        'steps': f'{certificate["steps"]}, killed at {certificate["killed_at_step"]}, '
        f'resumed at {certificate["resumed_at_step"]}',
        'metrics': f'{certificate["largest_relative_difference_of_metrics"]:.3g} largest relative '
        f'difference',
        'arrays': f'{certificate["arrays"]}, of which {len(differing)} differ',
        'state': certificate['state_resumed'],
        **_other_mesh_row(certificate),
        'certificate': str(workdir / CERTIFICATE),
    }
    if not certificate['exact']:
        rows['advice'] = (
            'a GPU repeats bit for bit with --config.train.deterministic=true; a CPU and a TPU '
            'always should'
        )
    return rows
