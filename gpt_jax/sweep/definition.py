"""The sweep file: what is searched, and how a trial becomes a command line."""

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
    metric: str = 'eval/loss'  # a column of metrics.jsonl; its last value counts
    direction: str = 'minimize'
    trials: int = 20  # in all, unless --trials says otherwise
    sampler: Callable[..., optuna.samplers.BaseSampler] = optuna.samplers.TPESampler  # by seed=
    pruner: optuna.pruners.BasePruner = dataclasses.field(default_factory=optuna.pruners.NopPruner)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)  # tried first
    seed: int = 0  # of the sampler

    def points(self) -> list[dict[str, Any]]:
        """Returns the points of the grid."""
        if not self.grid:
            return []
        product = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values, strict=True)) for values in product]


def load_sweep(path: pathlib.Path) -> Sweep:
    """Loads the `sweep` of a sweep file.

    Raises:
        UserError: the file is missing, fails, or defines no valid sweep.
    """
    if not path.is_file() or path.suffix != '.py':
        raise UserError(f'{path} is not a Python file; give the path of a sweep file')
    spec = importlib.util.spec_from_file_location(f'gpt_jax_sweep_{path.parent.name}', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{path}: {type(error).__name__}: {error}') from error
    sweep = getattr(module, 'sweep', None)
    if not isinstance(sweep, Sweep):
        raise UserError(
            f'{path} must assign a gpt_jax.sweep.definition.Sweep to `sweep`, not {sweep!r:.60}'
        )
    if sweep.direction not in DIRECTIONS:
        raise UserError(f'{path}: direction={sweep.direction!r} is not one of {DIRECTIONS}')
    return sweep


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
