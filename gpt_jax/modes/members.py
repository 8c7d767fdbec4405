"""Trains several commands: those that differ in numbers only, as members of one program.

Each workdir ends as its own run would have left it, and its own command goes on from there.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from gpt_jax import run as runs
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import flatten, to_json
from gpt_jax.errors import UserError
from gpt_jax.modes import train
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers, runtime
from gpt_jax.parallel.mesh import AXES, MeshConfig, ProgramKind, make_mesh
from gpt_jax.telemetry.progress import Progress
from gpt_jax.train.loop import Lane, Outcome, run_calls
from gpt_jax.train.member_program import MemberProgram
from gpt_jax.train.memory import explain_out_of_memory
from gpt_jax.train.program import make_program
from gpt_jax.train.run_folder import RunFolder
from gpt_jax.train.state import number_keys
from gpt_jax.train.stop_signal import StopSignal
from gpt_jax.train.trainer import Trainer
from gpt_jax.train.watchdog import Watchdog

AUTO = 'auto'
AUTO_MEMBERS = 8  # of a program, where they pay
# Speed of members by that of the same runs one after another, by backend; benchmarks/README.md
# has the measurements. Backends without an entry were not measured.
FACTORS = {'cpu': 1.06}
WORTHWHILE = 1.2  # a pruned member is computed until all end, and all need memory at once

# The end of a run: its exit status, or an error.
End = int | Exception


@dataclasses.dataclass(kw_only=True)
class _Member:
    """A run among the members, with its open workdir."""

    run: runs.Run
    trainer: Trainer
    checkpointer: Checkpointer
    start: train.Start
    folder: RunFolder
    end: Outcome | Exception | None = None  # how it ended

    @property
    def name(self) -> str:
        return self.run.workdir.name

    def train_alone(
        self, until: int, *, progress: Progress, watchdog: Watchdog, stop: Callable[[], bool]
    ) -> None:
        """Trains this member to the step from which others go on, or evaluates the last step."""
        try:
            outcome = self.trainer.train(
                first_batch=self.start.step,
                clock=self.start.clock,
                progress=progress,
                folder=self.folder,
                watchdog=watchdog,
                stop=stop,
                evaluate_first=self.start.evaluate_first,
                until=until,
            )
        except Exception as error:
            self.end = error
            return
        if outcome is Outcome.COMPLETE or int(self.trainer.state.step) < until:
            self.end = outcome
        else:
            self.start = dataclasses.replace(self.start, step=until, evaluate_first=False)


def count_members(text: str) -> int:
    """Returns the most members of a program that `--members` asks for; 'auto': those that pay.

    Raises:
        UserError: it is another text, or a number below 1.
    """
    if text == AUTO:
        runtime.silence_libtpu()
        pays = FACTORS.get(jax.default_backend(), 0.0) >= WORTHWHILE
        return AUTO_MEMBERS if pays else 1
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'--members={text} must be {AUTO} or a number from 1 on')
    return int(text)


def group(commands: Sequence[Command], *, most: int) -> list[list[int]]:
    """Returns the indices of commands that train together, at most this many, in their order."""
    groups: list[list[int]] = []
    for index, command in enumerate(commands):
        for each in groups:
            if len(each) < most and _can_join(commands[each[0]], command):
                each.append(index)
                break
        else:
            groups.append([index])
    return groups


def _can_join(first: Command, second: Command) -> bool:
    try:
        check_members([finalize(each.config, vocab_size=1) for each in (first, second)])
    except UserError:  # a wrong config is reported when it is trained alone
        return False
    return True


def train_group(commands: Sequence[Command]) -> list[End]:
    """Trains one command as the mode `train` does, or several together; returns how each ended.

    If the runs together fail, as by too little memory, they are trained one after another.
    """
    if len(commands) > 1:
        try:
            return train_members(commands)
        except Exception as error:
            reason = ' '.join(str(error).split()) or type(error).__name__
            print(f'{len(commands)} members failed, so they train alone: {reason}', flush=True)
    ends: list[End] = []
    for command in commands:
        if ends and isinstance(ends[-1], int) and ends[-1]:  # a signal, which was for all
            ends.append(ends[-1])
            continue
        try:
            ends.append(train.run(command))
        except Exception as error:
            ends.append(error)
    return ends


def train_members(commands: Sequence[Command]) -> list[End]:
    """Trains the runs of commands together; returns how each ended.

    A member that ends by an error, such as steps that are not finite, ends alone. Members that are
    behind the others, after a kill, first catch up one by one. A stop signal saves all.

    Raises:
        UserError: a command is wrong, or they differ in more than numbers; names the key.
    """
    if peers.num_processes() > 1:
        raise UserError('members train in one process; leave --num_processes out')
    for command in commands:
        train.check(command)
    runtime.initialize(commands[0].config.runtime)
    with contextlib.ExitStack() as stack:
        for command in commands:
            stack.enter_context(runs.lock(command.workdir))
        prepared = [train.prepare(command) for command in commands]
        configs = [config for config, *_ in prepared]
        check_members(configs)
        program = make_program(configs[0], make_mesh(MeshConfig(data=1)))
        stack.enter_context(explain_out_of_memory(program, configs[0]))
        signals = stack.enter_context(StopSignal())
        members = []
        for command, (config, tokenizer, folder) in zip(commands, prepared, strict=True):
            trainer = Trainer(
                config,
                tokenizer,
                folder,
                evaluators=command.evaluators(config),
                program=program.of_member(config),
            )
            trainer.check_texts()
            this_run = runs.Run(command.workdir, config, tokenizer, draft=command.config)
            members.append(_open(command, this_run, trainer, stack))
        going = [member for member in members if member is not None]
        if going:
            _train(going, stop=lambda: signals.received is not None)
        for member in going:
            if isinstance(member.end, Outcome):
                steps = member.run.config.train.num_steps
                train.end_run(member.end, member.run, member.start, step=steps)
    return [_exit_status(member, signals) for member in members]


def _exit_status(member: _Member | None, signals: StopSignal) -> End:
    if member is None or member.end is Outcome.COMPLETE:
        return 0
    if member.end is Outcome.STOPPED:
        return train.stopped_status(signals.received)
    return member.end


def _open(
    command: Command, this_run: runs.Run, trainer: Trainer, stack: contextlib.ExitStack
) -> _Member | None:
    """Opens the workdir of a member until the stack ends; None if the run is complete."""
    checkpointer = stack.enter_context(
        Checkpointer(this_run.checkpoints, this_run.config.checkpoint)
    )
    start = train.restore_or_begin(trainer, this_run, checkpointer, command)
    if start is None:
        return None
    folder = stack.enter_context(train.open_folder(trainer, this_run, checkpointer, start, command))
    return _Member(
        run=this_run, trainer=trainer, checkpointer=checkpointer, start=start, folder=folder
    )


def check_members(configs: Sequence[RunConfig]) -> None:
    """Rejects finalized configs that differ in more than numbers.

    Raises:
        UserError: names the first key that differs, or the axis of a mesh.
    """
    first = configs[0]
    flat = flatten(to_json(first))
    for axis in AXES:
        if getattr(first.mesh, axis) not in (1, -1):
            raise UserError(
                f'config.mesh.{axis}={getattr(first.mesh, axis)}: each member trains on one '
                f'device; set it to 1'
            )
    if first.mesh.program != ProgramKind.JIT:
        raise UserError(f'config.mesh.program={first.mesh.program}: members need jit')
    if first.train.max_seconds:
        raise UserError('config.train.max_seconds: members share their time; set it to 0')
    for config in configs[1:]:
        numbers = number_keys(first) & number_keys(config)
        other = flatten(to_json(config))
        for key in sorted(flat.keys() | other.keys()):
            if flat.get(key) != other.get(key) and key.removeprefix('config.') not in numbers:
                raise UserError(
                    f'{key} is {flat.get(key)!r} and {other.get(key)!r}: members differ only in '
                    f'numbers of the training step; make it equal, or train them one by one'
                )


def _train(members: Sequence[_Member], *, stop: Callable[[], bool]) -> None:
    """Trains members from their starts on; `end` says how each ended."""
    config = members[0].run.config
    num_steps = config.train.num_steps
    begin = max((each.start.step for each in members if each.start.step < num_steps), default=0)
    with (
        Progress(
            num_steps, unit='steps', description=f'train {len(members)} members', start=begin
        ) as progress,
        Watchdog(config.train.step_timeout) as watchdog,
    ):
        for member in members:
            if member.start.step != begin:
                until = begin if member.start.step < begin else num_steps
                member.train_alone(until, progress=progress, watchdog=watchdog, stop=stop)
        together = [member for member in members if member.end is None]
        if together:
            _train_together(together, begin, progress=progress, watchdog=watchdog, stop=stop)
        with watchdog.patient():
            for member in members:
                member.checkpointer.wait()


def _train_together(
    members: Sequence[_Member],
    begin: int,
    *,
    progress: Progress,
    watchdog: Watchdog,
    stop: Callable[[], bool],
) -> None:
    """Trains members that are all at step `begin`."""
    seeds = [member.run.config.seed for member in members]
    streams = {seed: seeds.index(seed) for seed in seeds}  # the member whose pipeline is read
    program = members[0].trainer.program
    together = MemberProgram(
        program,
        [member.trainer.program.numbers for member in members],
        streams=[list(streams).index(seed) for seed in seeds],
    )
    states = together.stack([member.trainer.state for member in members])
    lanes = []
    for index, member in enumerate(members):
        del member.trainer.state
        lane = Lane(
            member.trainer,
            state=lambda index=index: together.member(states, index),
            clock=member.start.clock,
            folder=member.folder,
            progress=progress,
            first=begin,
            name=member.name,
        )
        if member.start.evaluate_first:
            with watchdog.patient():
                lane.evaluate_first(begin)
        lanes.append(lane)

    def advance(calls: list[list[Any]]) -> list[dict[str, Any]]:
        nonlocal states
        states, metrics = together.advance(states, calls)
        return metrics

    def lose(lane: Lane, error: Exception) -> None:
        member = members[lanes.index(lane)]
        member.end = error
        progress.print(f'{member.name} ends: {error}')

    outcome = run_calls(
        lanes,
        advance=advance,
        streams=[members[index].trainer.pipeline.batches(begin) for index in streams.values()],
        call_length=program.call_length,
        first=begin,
        progress=progress,
        watchdog=watchdog,
        stop=stop,
        lose=lose,
    )
    for member in members:
        member.end = member.end or outcome
