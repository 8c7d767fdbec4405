"""Report on runs: curves, warnings, evaluations, samples and settings, as one HTML page."""

import glob
import os
import pathlib

from absl import flags as absl_flags

from gpt_jax import files, object_store
from gpt_jax.errors import UserError
from gpt_jax.modes.command import Command
from gpt_jax.page import save
from gpt_jax.parallel import peers
from gpt_jax.report.groups import group_runs
from gpt_jax.report.recorded_run import read_runs
from gpt_jax.report.terminal import format_summary
from gpt_jax.report.warning_rules import find_warnings
from gpt_jax.report.write import render

PAGE = 'report.html'  # in the workdir


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the runs to compare with, and the page."""
    absl_flags.DEFINE_list(
        'compare',
        [],
        'workdirs to draw over that of --workdir, also as patterns: runs/seed-*',
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        'out', '', f'the page (default: {PAGE} in the workdir)', flag_values=flags
    )


def run(command: Command) -> int:
    """Prints a row for each run and the warnings; writes the page."""
    flags, workdir = command.flags, command.workdir
    if not peers.is_primary():
        return 0
    path = object_store.to_path(flags.out, key='--out') if flags.out else workdir / PAGE
    others = [each for name in flags.compare for each in _expand(name)]
    # A pattern may match the workdir itself.
    workdirs = [workdir, *(each for each in dict.fromkeys(others) if not _same(each, workdir))]
    keys = ['--workdir', *['--compare'] * (len(workdirs) - 1)]
    files.check_writable(path, key='--out')
    runs = read_runs(workdirs, keys=keys)
    groups = group_runs(runs)
    warnings = {each.name: find_warnings(each) for each in runs}
    size = save(render(groups, warnings), path)
    print(format_summary(groups, warnings))
    print(f'wrote {path} ({size / 1e3:,.0f} kB); open it in a browser')
    return 0


def _expand(name: str) -> list[pathlib.Path]:
    """Returns the folders that a name or a pattern stands for; only a disk has patterns."""
    if object_store.is_remote(name) or not glob.has_magic(name) or os.path.isdir(name):
        return [object_store.to_path(name, key='--compare')]
    pattern = os.path.expanduser(name)
    found = [pathlib.Path(each) for each in sorted(glob.glob(pattern)) if os.path.isdir(each)]
    if not found:
        raise UserError(f'--compare={name} matches no folder; name workdirs of runs')
    return found


def _same(one: pathlib.Path, other: pathlib.Path) -> bool:
    if object_store.is_remote(one) or object_store.is_remote(other):
        return str(one) == str(other)
    return one.resolve() == other.resolve()
