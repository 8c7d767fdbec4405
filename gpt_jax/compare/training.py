"""Trains the runs of a comparison that are missing, one after another."""

import time
from collections.abc import Sequence

from gpt_jax import main, run
from gpt_jax.compare.runs import State, state_of
from gpt_jax.compare.sides import PlannedRun
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import differences, to_json
from gpt_jax.errors import UserError
from gpt_jax.telemetry.progress import format_duration


def train_missing(runs: Sequence[PlannedRun]) -> int:
    """Trains what is not finished; returns 0, or the exit status of a run that was stopped.

    An unfinished run resumes from its checkpoint. A run that diverged is not trained again.

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
    began = time.monotonic()
    for number, planned in enumerate(missing, start=1):
        left = None
        if number > 1:
            left = (time.monotonic() - began) / (number - 1) * (len(missing) - number + 1)
        print(
            f'run {number} of {len(missing)}: {planned.side}, seed {planned.seed}; all done in '
            f'{format_duration(left)}\n{planned.command_line()}',
            flush=True,
        )
        if status := _train(planned):
            return status
    return 0


def _train(planned: PlannedRun) -> int:
    mode, command = main.read_command([*planned.arguments])
    try:
        return mode.run(command)
    except UserError as error:
        if state_of(planned.workdir) is not State.DIVERGED:
            raise UserError(f'side {planned.side}, seed {planned.seed}: {error}') from error
        print(f'diverged: {error}', flush=True)
        return 0


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
