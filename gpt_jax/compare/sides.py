"""The sides of a comparison as given on the command line, and the runs that they consist of."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Sequence

from gpt_jax import main, object_store, run
from gpt_jax.config import RunConfig, finalize, run_name
from gpt_jax.errors import UserError

SEED_FLAG = '--config.seed='


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of one seed. One that must exist already has no arguments."""

    side: str
    seed: int
    workdir: pathlib.Path
    arguments: tuple[str, ...] = ()  # of `python -m gpt_jax.main`

    def command_line(self) -> str:
        """Returns the line that trains this run by itself."""
        return shlex.join(['python', '-m', 'gpt_jax.main', *self.arguments])


@dataclasses.dataclass(frozen=True)
class Plan:
    """A side: the runs of one config, one per seed."""

    name: str
    folder: pathlib.Path
    runs: list[PlannedRun]
    config: RunConfig  # final, but for what depends on the data


def is_override(argument: str) -> bool:
    """Returns whether an argument sets a knob, such as --config.seed=1."""
    return re.match(r'--?(no)?config\.', argument) is not None


def plan_sides(
    texts: Sequence[str], *, config: str, overrides: Sequence[str], seeds: int, root: pathlib.Path
) -> list[Plan]:
    """Plans all sides; `config` and `overrides` are for those to train.

    A side is `[NAME=]FILE.py[:variant] [--config.KEY=VALUE …]`, where `config` may stand for the
    file, or `[NAME=]FOLDER` of finished runs.

    Raises:
        UserError: a side is malformed, its config is wrong, or two sides have one name.
    """
    plans = []
    for text in texts:
        name, source, flags = _parse_side(text, config)
        if re.search(r'\.py(:|$)', source):
            name = name or run_name(source)
            flags = ['--config', source, *overrides, *flags]
            plans.append(_plan_training(name, flags, seeds=seeds, folder=root / name))
        else:
            if flags:
                raise UserError(f'side {text!r} is no config file (FILE.py); remove {flags[0]}')
            folder = object_store.to_path(source, key='side')
            plans.append(_plan_finished(name or folder.name, folder, seeds=seeds))
    names = [plan.name for plan in plans]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f'two sides are called {twice[0]}; write NAME=… to tell them apart')
    if overrides and not any(planned.arguments for plan in plans for planned in plan.runs):
        raise UserError(f'all sides are finished runs; remove {overrides[0]}')
    return plans


def _parse_side(text: str, config: str) -> tuple[str, str, list[str]]:
    """Returns the name or '', the config file or folder, and the flags."""
    name, rest = re.fullmatch(r'(?:([\w.-]+)=)?(.*)', text, re.DOTALL).groups('')
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UserError(f'side {text!r}: {error}') from error
    source = words.pop(0) if words and not words[0].startswith('-') else config
    if not source:
        raise UserError(f'side {text!r} has no config; give --config FILE.py[:variant]')
    for word in words:
        if word.startswith('-') and not is_override(word):
            raise UserError(f'side {text!r}: {word} is not a --config.KEY=VALUE; remove it')
    return name, source, words


def _plan_training(name: str, flags: list[str], *, seeds: int, folder: pathlib.Path) -> Plan:
    """Plans runs with the seed of the config and those that follow it."""
    try:
        _, command = main.read_command([*flags, '--workdir', str(folder)])
        final = finalize(command.config, vocab_size=1)
    except UserError as error:
        raise UserError(f'side {name}: {error}') from error
    runs = []
    for seed in range(final.seed, final.seed + seeds):
        workdir = folder / f'seed_{seed}'
        arguments = (*flags, f'{SEED_FLAG}{seed}', '--workdir', str(workdir))
        runs.append(PlannedRun(name, seed, workdir, arguments))
    return Plan(name, folder, runs, final)


def _plan_finished(name: str, folder: pathlib.Path, *, seeds: int) -> Plan:
    """Finds the run in `folder`, or the runs in its subfolders."""
    workdirs = [folder]
    if not (folder / run.CONFIG).is_file():
        if object_store.is_remote(folder):
            names = object_store.list_names(folder)
        else:
            names = sorted(path.name for path in folder.glob('*'))
        workdirs = [folder / each for each in names if (folder / each / run.CONFIG).is_file()]
    if not workdirs:
        raise UserError(f'{folder} is no config file (FILE.py) and no folder of runs; name one')
    configs = {workdir: run.read_config(workdir) for workdir in workdirs}
    found = {}
    for workdir, config in configs.items():
        if config.seed in found:
            raise UserError(
                f'{folder} has two runs with config.seed={config.seed}; move one elsewhere'
            )
        found[config.seed] = PlannedRun(name, config.seed, workdir)
    if len(found) != seeds:
        raise UserError(
            f'{folder} has {len(found)} seeds, not --seeds={seeds}; the number must be chosen '
            f'before the results are seen: train the others, or say --seeds={len(found)}'
        )
    return Plan(name, folder, [found[seed] for seed in sorted(found)], configs[workdirs[0]])
