"""The sweep file: the knobs of a sweep, and how a trial becomes a command line."""

import dataclasses
import importlib.util
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from gpt_jax.errors import UserError

DIRECTIONS = ('minimize', 'maximize')


@dataclasses.dataclass(frozen=True)
class Trial:
    """The run of one trial: a variant of the base config, and overrides by dotted key."""

    variant: str = ''
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """The definition of a sweep; a sweep file assigns one to `sweep`."""

    config: str  # the base config, as for --config, without a variant
    suggest: Callable[[optuna.trial.Trial], Trial]
    name: str = ''  # of the study in the storage; default: the file's folder
    metric: str = 'eval/loss'  # a column of metrics.jsonl; its last value counts
    direction: str = 'minimize'
    trials: int = 20  # in all, unless there is a grid or --trials
    sampler: Callable[..., optuna.samplers.BaseSampler] = optuna.samplers.TPESampler  # by seed=
    pruner: optuna.pruners.BasePruner = dataclasses.field(default_factory=optuna.pruners.NopPruner)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)  # tried first
    seed: int = 0  # of the sampler
    retries: int = 2  # of a trial that crashes at the same point again
    columns: Sequence[str] = ()  # of metrics.jsonl: the results have their curves, too
    # From the results, when no trial is left, and the folder for pictures, to what they say.
    answer: Callable[[Mapping[str, Any], pathlib.Path], Mapping[str, Any]] | None = None

    def points(self) -> list[dict[str, Any]]:
        """Returns the points of the grid."""
        if not self.grid:
            return []
        product = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values, strict=True)) for values in product]


def locate(text: str) -> tuple[pathlib.Path, str]:
    """Returns the path of a sweep file and the name of its sweep, from FILE.py[:NAME]."""
    path, _, name = text.partition('.py:')
    return (pathlib.Path(f'{path}.py'), name) if name else (pathlib.Path(text), 'sweep')


def load_sweep(path: pathlib.Path, variable: str = 'sweep') -> Sweep:
    """Loads the sweep that a sweep file assigns to a variable.

    Raises:
        UserError: the file is missing, fails, or defines no valid sweep.
    """
    if not path.is_file() or path.suffix != '.py':
        raise UserError(f'{path} is not a Python file; give the path of a sweep file')
    spec = importlib.util.spec_from_file_location(f'gpt_jax_sweep_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f'{path}: {type(error).__name__}: {error}') from error
    sweep = getattr(module, variable, None)
    if not isinstance(sweep, Sweep):
        others = [name for name, value in vars(module).items() if isinstance(value, Sweep)]
        raise UserError(
            f'{path} must assign a gpt_jax.sweep.definition.Sweep to `{variable}`, not '
            f'{sweep!r:.60}' + (f'; it has {", ".join(others)}' if others else '')
        )
    for problem in _problems(sweep):
        raise UserError(f'{path}: {problem}')
    if sweep.name:
        return sweep
    slug = path.resolve().parent.name
    return dataclasses.replace(sweep, name=slug if variable == 'sweep' else f'{slug}_{variable}')


def _problems(sweep: Sweep) -> list[str]:
    """Returns what is wrong with the fields of a sweep."""

    def is_list(value: Any) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0

    checks = {
        'config': (isinstance(sweep.config, str), 'give the path of a config file'),
        'name': (isinstance(sweep.name, str) and '/' not in sweep.name, 'give a word'),
        'suggest': (callable(sweep.suggest), 'give a function of a trial'),
        'metric': (isinstance(sweep.metric, str), 'give a column of metrics.jsonl'),
        'direction': (sweep.direction in DIRECTIONS, f'give one of {DIRECTIONS}'),
        'trials': (_is_count(sweep.trials, 1), 'give a number from 1 on'),
        'retries': (_is_count(sweep.retries, 0), 'give a number from 0 on'),
        'seed': (_is_count(sweep.seed, 0), 'give a number from 0 on'),
        'sampler': (
            _makes_sampler(sweep.sampler),
            'give a class of optuna.samplers, or a function of seed that returns a sampler',
        ),
        'pruner': (
            isinstance(sweep.pruner, optuna.pruners.BasePruner),
            'give an instance of a class of optuna.pruners',
        ),
        'grid': (
            isinstance(sweep.grid, Mapping) and all(map(is_list, sweep.grid.values())),
            'give a list of values for each parameter',
        ),
        'columns': (is_list(sweep.columns) or not sweep.columns, 'give names of columns'),
        'answer': (sweep.answer is None or callable(sweep.answer), 'give a function of results'),
    }
    return [
        f'sweep.{name}={getattr(sweep, name)!r:.60} is not valid; {fix}'
        for name, (is_valid, fix) in checks.items()
        if not is_valid
    ]


def _makes_sampler(make: Any) -> bool:
    try:
        return isinstance(make(seed=0), optuna.samplers.BaseSampler)
    except TypeError:  # it cannot be called, or not with a seed alone
        return False


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def to_arguments(sweep: Sweep, trial: Trial, workdir: pathlib.Path) -> list[str]:
    """Returns the arguments of `python -m gpt_jax.main` that train a trial."""
    config = f'{sweep.config}:{trial.variant}' if trial.variant else sweep.config
    flags = [f'--config.{key}={_to_text(value)}' for key, value in trial.overrides.items()]
    return ['--config', config, '--workdir', str(workdir), *flags]


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ','.join(map(_to_text, value))
    return str(value)
