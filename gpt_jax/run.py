"""A run's folder: its config, its tokenizer, its lock, and its weights for other uses."""

import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from gpt_jax import files, tokenizer
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.config import RunConfig
from gpt_jax.config_tree import from_json, to_json
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import init_params
from gpt_jax.tokenizer import Tokenizer

CONFIG, TOKENIZER, CHECKPOINTS, PROVENANCE = (
    'config.json',
    'tokenizer',
    'checkpoints',
    'provenance.json',
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir holds besides its checkpoints."""

    workdir: pathlib.Path
    config: RunConfig
    tokenizer: Tokenizer

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of checkpoints."""
        return self.workdir / CHECKPOINTS


def read_config(workdir: pathlib.Path) -> RunConfig:
    """The config that a run was started with.

    Raises:
        UserError: the folder is no run, or its config is damaged.
    """
    if not (workdir / CONFIG).is_file():
        raise UserError(f'--workdir={workdir} holds no run: it has no {CONFIG}; train one first')
    return from_json(files.read_json(workdir / CONFIG), RunConfig)


def read_tokenizer(workdir: pathlib.Path) -> Tokenizer:
    """The tokenizer that a run was trained with."""
    return tokenizer.load(workdir / TOKENIZER)


def save_run(run: Run, *, overrides: dict[str, Any]) -> None:
    """Writes what `read_config` and `read_tokenizer` read, and where the run came from."""
    run.tokenizer.save(run.workdir / TOKENIZER)
    provenance = {'command': sys.argv, 'overrides': overrides, 'git_commit': git_commit()}
    files.write_json(run.workdir / PROVENANCE, provenance)
    files.write_json(run.workdir / CONFIG, to_json(run.config))


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir for one writer; the lock goes with the process.

    A folder in which nothing was written, because the run was refused, is removed again.

    Raises:
        UserError: another process writes there, or the folder cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / 'lock', 'a+')  # noqa: SIM115 (closed below, after the run)
    except OSError as error:
        raise files.cannot_write(workdir, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f'--workdir={workdir} is in use by process {file.read().strip() or "?"}; wait for '
                f'it to end or choose another --workdir'
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty, or not there
                (workdir / CHECKPOINTS).rmdir()
            with contextlib.suppress(OSError):
                if os.listdir(workdir) == ['lock']:
                    (workdir / 'lock').unlink()
                    workdir.rmdir()


def restore_weights(
    run: Run, *, step: int | str, weights: str, abstract: Any = None
) -> tuple[int, Any]:
    """The step and the parameters (stored layout) of a checkpoint.

    Args:
      step: a number, 'latest' or 'best'.
      weights: 'raw' or 'ema'.
      abstract: shapes with shardings to restore onto; by default the first device.

    Raises:
        UserError: there is no such checkpoint, or the run keeps no average.
    """
    if weights == 'ema' and not run.config.train.ema_decay:
        raise UserError('--weights=ema: the run has none (config.train.ema_decay was 0); use raw')
    item = 'params' if weights == 'raw' else 'ema'
    if abstract is None:
        init = functools.partial(init_params, run.config.model)
        abstract = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    with Checkpointer(run.checkpoints, run.config.checkpoint, read_only=True) as checkpointer:
        restored = checkpointer.restore({item: abstract}, step=step)
    if restored is None:
        raise UserError(f'{run.workdir} has no checkpoint yet; train first')
    return restored.step, restored.items[item]


def git_commit() -> str:
    """The commit of the code that runs, '+' appended when files differ; '' outside git."""
    git = ['git', '-C', str(pathlib.Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, 'describe', '--always', '--abbrev=40', '--dirty=+'],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return commit.stdout.strip() if commit.returncode == 0 else ''
