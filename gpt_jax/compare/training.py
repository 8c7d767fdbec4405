"""Trains the runs of a comparison that are missing, one after another or together."""

import time
from collections.abc import Sequence

from gpt_jax import main, run
from gpt_jax.compare.runs import State, state_of
from gpt_jax.compare.sides import PlannedRun
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import differences, to_json
from gpt_jax.errors import UserError
from gpt_jax.modes import members
from gpt_jax.telemetry.progress import format_duration


def train_missing(runs: Sequence[PlannedRun], *, most_members: int = 1) -> int:
    """Trains what is not finished; returns 0, or the exit status of a run that was stopped.

    An unfinished run resumes from its checkpoint. A run that diverged is not trained again. Up to
    `most_members` runs train together, if they differ in numbers only.

    Raises:
        UserError: a workdir has a run of another config, or a run was rejected.
    """
    missing = []
    for planned in (each for each in runs if each.arguments):
        if (planned.workdir / run.CONFIG).is_file():
            _check_same(planned)
            if state_of(planned.workdir) is not State.UNFINISHED:
                continue
        missing.append(planned)
    commands = [main.read_command([*planned.arguments])[1] for planned in missing]
    began, done = time.monotonic(), 0
    for indices in members.group(commands, most=most_members):
        left = (time.monotonic() - began) / done * (len(missing) - done) if done else None
        together = ' together' if len(indices) > 1 else ''
        for number, index in enumerate(indices, start=done + 1):
            planned = missing[index]
            print(
                f'run {number} of {len(missing)}{together}: {planned.side}, seed {planned.seed}; '
                f'all done in {format_duration(left)}\n{planned.command_line()}',
                flush=True,
            )
        ends = members.train_group([commands[index] for index in indices])
        for index, end in zip(indices, ends, strict=True):
            if isinstance(end, Exception):
                _check_diverged(missing[index], end)
        if status := next((end for end in ends if isinstance(end, int) and end), 0):
            return status
        done += len(indices)
    return 0


def _check_diverged(planned: PlannedRun, error: Exception) -> None:
    """Prints that a run diverged; raises any other error that ended it."""
    if not isinstance(error, UserError):
        raise error
    if state_of(planned.workdir) is not State.DIVERGED:
        raise UserError(f'side {planned.side}, seed {planned.seed}: {error}') from error
    print(f'diverged: {error}', flush=True)


def _check_same(planned: PlannedRun) -> None:
    """Rejects a workdir that was trained with another config than the planned one."""
    _, command = main.read_command([*planned.arguments])
    stored = run.read_config(planned.workdir)
    wanted = finalize(command.config, vocab_size=stored.model.vocab_size)
    changes = [
        change
        for change in differences(to_json(stored), to_json(wanted))
        if not _follows_from_data(change, wanted)
    ]
    if changes:
        raise UserError(
            f'{planned.workdir} was trained with another config ({changes[0]}); rename the side, '
            'choose another --root, or delete that folder'
        )


def _follows_from_data(change: str, config: RunConfig) -> bool:
    return bool(config.train.num_epochs) and change.startswith('config.train.num_steps:')
