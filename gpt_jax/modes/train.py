"""Train in a workdir (the default mode): prepares missing data, resumes, evaluates, saves."""

import contextlib
import dataclasses
import pathlib
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import flags as absl_flags

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import INT32_MAX, differences, from_json, to_json
from gpt_jax.data import mixture
from gpt_jax.data.prepare import filled_splits
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.data.shards import Shards
from gpt_jax.data.skipped import parse_skip_steps
from gpt_jax.data.split import VALIDATION
from gpt_jax.data.windows import tokens_of_epoch
from gpt_jax.errors import UserError
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers, probe, runtime
from gpt_jax.telemetry.metrics import MetricsWriter, last_row
from gpt_jax.telemetry.progress import Progress
from gpt_jax.telemetry.report import format_table
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.train import results
from gpt_jax.train.evaluators import is_due
from gpt_jax.train.host_memory import check_host_memory
from gpt_jax.train.loop import Outcome
from gpt_jax.train.memory import explain_out_of_memory
from gpt_jax.train.run_folder import RunFolder, state_items
from gpt_jax.train.startup_report import describe_passes, summarize, warn_of_passes
from gpt_jax.train.state import TrainState
from gpt_jax.train.stop_signal import StopAgreement, StopSignal
from gpt_jax.train.trainer import Trainer
from gpt_jax.train.training_clock import TrainingClock
from gpt_jax.train.watchdog import Watchdog

UNFINISHED = 75  # exit status EX_TEMPFAIL: saved, run me again
INTERRUPTED = 130  # the shell's status for Ctrl-C
# Changing one of these changes the batch of a step.
DATA_KEYS = ('config.train.batch_size', 'config.model.max_seq_len', 'config.seed', 'config.data.')
SKIP_KEY = 'config.data.skip_steps'  # changes the batches of later steps only


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for starting over and going back."""
    absl_flags.DEFINE_boolean(
        'fresh', False, 'delete the checkpoints of the workdir and start over', flag_values=flags
    )
    absl_flags.DEFINE_integer(
        'resume_step',
        None,
        'go back to this checkpoint of the workdir and delete the later ones',
        lower_bound=0,
        upper_bound=INT32_MAX,
        flag_values=flags,
    )


def run(command: Command) -> int:
    """Trains to the end of the run, or until a stop signal; returns the exit status."""
    flags, config, workdir = command.flags, command.config, command.workdir
    if flags.fresh and flags.resume_step is not None:
        raise UserError('--fresh and --resume_step exclude each other; leave one out')
    draft = check(command)
    runtime.initialize(config.runtime)
    check_host_memory(draft)
    runs.check_processes(config, workdir)
    with runs.lock(workdir):
        final, tokenizer, folder = prepare(command)
        if peers.num_processes() > 1:
            probe.check_shared_folder(workdir)
        trainer = Trainer(final, tokenizer, folder, evaluators=command.evaluators(final))
        trainer.check_texts()
        this_run = runs.Run(workdir, final, tokenizer, draft=config)
        with (
            Checkpointer(this_run.checkpoints, final.checkpoint) as checkpointer,
            StopSignal() as signals,
            explain_out_of_memory(trainer.program, final),
        ):
            stop = StopAgreement(signals, trainer.program.mesh)
            if flags.fresh:
                checkpointer.clear()
            outcome = _train(trainer, this_run, checkpointer, stop, command)
    if outcome is Outcome.COMPLETE:
        return 0
    if flags.fresh:
        print('leave --fresh out then: it would begin anew')
    if flags.resume_step is not None:
        print('leave --resume_step out then: it would go back again')
    return stopped_status(stop.received)


def stopped_status(received: signal.Signals | None) -> int:
    """Returns the exit status of a training that saved and ended for a signal."""
    return INTERRUPTED if received == signal.SIGINT else UNFINISHED


def check(command: Command) -> RunConfig:
    """Checks a command before any data is read; returns its config, finalized without data.

    Raises:
        UserError: a value cannot work.
    """
    config = command.config
    draft = finalize(config, vocab_size=1)
    _check_length(config, command.overrides)
    if VALIDATION not in filled_splits(config.data):
        raise UserError(
            f'config.data.split={config.data.split} leaves nothing to validate on; it is for '
            f'folders that others name in config.data.mixture'
        )
    return draft


def prepare(command: Command) -> tuple[RunConfig, Tokenizer, pathlib.Path]:
    """Prepares the data of a command; returns the finalized config, the tokenizer and the data."""
    config = command.config
    folder = runs.prepare_data(config)
    tokenizer = make_run_tokenizer(
        folder, config.tokenizer, chat_template=config.data.chat_template
    )
    shards = Shards.open(folder, 'train', tokenizer=tokenizer)
    seq_len = config.model.max_seq_len
    tokens = tokens_of_epoch(config.data.windows, shards, seq_len=seq_len)
    tokens = mixture.tokens_per_pass(tokens, config.data)
    final = finalize(config, vocab_size=tokenizer.vocab_size, train_tokens=tokens)
    runs.check_data(folder, tokenizer, config.data)
    return final, tokenizer, folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """The place at which a training begins or goes on."""

    step: int
    resumed: bool
    meta: Mapping[str, Any]  # of the next checkpoints
    clock: TrainingClock
    evaluate_first: bool


def _train(
    trainer: Trainer,
    this_run: runs.Run,
    checkpointer: Checkpointer,
    stop: StopAgreement,
    command: Command,
) -> Outcome:
    """Restores the state, prints the summary of the run, and runs the loop."""
    config = trainer.config
    start = restore_or_begin(trainer, this_run, checkpointer, command)
    if start is None:
        return Outcome.COMPLETE
    with (
        open_folder(trainer, this_run, checkpointer, start, command) as run_folder,
        Progress(
            config.train.num_steps,
            unit='steps',
            description='train',
            start=start.step,
            quiet=not peers.is_primary(),
        ) as progress,
        Watchdog(config.train.step_timeout) as watchdog,
    ):
        outcome = trainer.train(
            first_batch=start.step,
            clock=start.clock,
            progress=progress,
            folder=run_folder,
            watchdog=watchdog,
            stop=stop.requested,
            evaluate_first=start.evaluate_first,
        )
        with watchdog.patient():
            checkpointer.wait()
    end_run(outcome, this_run, start, step=int(trainer.state.step))
    return outcome


def restore_or_begin(
    trainer: Trainer, this_run: runs.Run, checkpointer: Checkpointer, command: Command
) -> Start | None:
    """Sets the trainer's state from the last checkpoint or makes a new one; prints a summary.

    The checkpoints after `--resume_step` are deleted, if it is given. Returns None if the run is
    complete.

    Raises:
        UserError: the workdir holds no training, or one on other batches.
    """
    config, workdir = trainer.config, this_run.workdir
    overrides, resume_step = command.overrides, command.flags.resume_step
    meta = {
        'config': to_json(config),
        'data': trainer.pipeline.identity,
        'tokenizer': trainer.tokenizer.fingerprint(),
        'evaluators': [evaluator.name for evaluator in trainer.added],
        'overrides': overrides,
    }
    saved = checkpointer.meta('latest' if resume_step is None else resume_step)
    if saved is not None:
        if not runs.is_training(saved):
            raise UserError(
                f'{workdir} holds weights and no training to go on with; train from them in '
                f'another --workdir with --config.train.init_from={workdir}'
            )
        _check_resumable(saved, meta, workdir)
        _check_skipped(saved, trainer, checkpointer, resume_step)
    if resume_step is not None:
        checkpointer.discard_after(resume_step)
    passes = trainer.count_passes(config.train.num_steps)
    text = f'{trainer.text_tokens:,} tokens to train on, {describe_passes(passes)}'
    print(
        format_table(str(workdir), summarize(trainer.program, config) | {'text': text}), flush=True
    )
    keys = [f'config.{_length_key(config)}']
    if keys == ['config.train.num_steps']:  # else the number of steps follows from the batch size
        keys.append('config.train.batch_size')
    warn_of_passes(passes, keys=keys)
    _warn_of_warmup(config)
    restored = checkpointer.restore(state_items(trainer.program.abstract_state))
    start = 0 if restored is None else restored.step
    clock = TrainingClock(
        seconds=0.0 if restored is None else restored.meta.get('seconds', 0.0),
        budget=config.train.max_seconds,
        mesh=trainer.program.mesh,
    )
    ended_by = 'train.max_seconds' if clock.is_spent else f'{_length_key(config)}'
    is_over = clock.is_spent or start >= config.train.num_steps
    # If the run stopped before the evaluation of this step was done, do it now.
    evaluate_first = (
        bool(config.train.init_from)
        if restored is None
        else saved.get('eval_loss') is None
        and (is_due(config.eval.every, start) or (is_over and config.eval.at_end))
    )
    if start > config.train.num_steps or (is_over and not evaluate_first):
        print(
            f'{workdir} is complete: {start} steps. To see it write: --mode generate; to go on: '
            f'--config.{ended_by}=N; to start over: --fresh'
        )
        return None
    if restored is not None:
        trainer.state = TrainState(**restored.items)
        meta |= {key: saved.get(key) for key in ('init_from', 'credits')}
        meta['overrides'] = saved.get('overrides', {}) | overrides
        print(f'resuming at step {start}', flush=True)
    else:
        meta['init_from'], meta['credits'] = _begin(trainer)

    if restored is not None:
        _warn_of_missing_evaluators(saved, meta['evaluators'])
        _warn_of_lost_rows(config, saved['config'], workdir, start)
    return Start(
        step=start,
        resumed=restored is not None,
        meta=meta,
        clock=clock,
        evaluate_first=evaluate_first,
    )


@contextlib.contextmanager
def open_folder(
    trainer: Trainer,
    this_run: runs.Run,
    checkpointer: Checkpointer,
    start: Start,
    command: Command,
) -> Iterator[RunFolder]:
    """Opens the workdir for the rows and checkpoints of a training, and writes its files."""
    with MetricsWriter(
        this_run.workdir,
        trainer.config.train.sinks if peers.is_primary() else (),
        resume_step=start.step if start.resumed else None,
    ) as writer:
        folder = RunFolder(
            this_run.workdir,
            checkpointer,
            writer,
            meta=start.meta,
            clock=start.clock,
            watch=command.watch,
        )
        runs.save_run(
            this_run,
            overrides=command.overrides,
            origin=start.meta['init_from'],
            data=hash_of(start.meta['data']['sources']),
        )
        yield folder


def end_run(outcome: Outcome, this_run: runs.Run, start: Start, *, step: int) -> None:
    """Prints how a training ended after `step`; a complete run gets its line in the table."""
    if outcome is Outcome.COMPLETE:
        early = step < this_run.config.train.num_steps
        why = ' (config.train.max_seconds is spent)' if early else ''
        print(f'complete: {step} steps in {this_run.workdir}{why}')
        _record_result(this_run, step, start.clock.seconds, start.meta['overrides'])
    else:
        print(f'saved in {this_run.workdir}; the same command goes on from there')


def _record_result(
    this_run: runs.Run, step: int, seconds: float, overrides: Mapping[str, Any]
) -> None:
    """Writes the run's line into the table beside its workdir; a failure costs a warning.

    An object store has no locks: there two runs that end together would lose a line, so there is
    no table.
    """
    workdir = this_run.workdir
    if not peers.is_primary() or object_store.is_remote(workdir):
        return
    try:
        result = results.describe_result(
            workdir,
            this_run.config,
            step=step,
            seconds=seconds,
            commit=files.read_json(workdir / runs.PROVENANCE)['git_commit'],
            overrides=overrides,
        )
        results.record(workdir.absolute().parent, result)
    except UserError as error:
        print(f'warning: no line in {results.TABLE}: {error}', flush=True)


def _warn_of_warmup(config: RunConfig) -> None:
    """Warns if the run ends before its warm-up does."""
    steps, warmup = config.train.num_steps, config.schedule.warmup_steps
    if warmup >= steps:
        reached = config.optimizer.learning_rate * steps / (warmup + 1)
        print(
            f'warning: config.schedule.warmup_steps={warmup} is not less than the {steps} steps of '
            f'the run, so the learning rate reaches {reached:.3g} only; lower that key',
            flush=True,
        )


def _warn_of_missing_evaluators(saved: Mapping[str, Any], names: list[str]) -> None:
    """Warns if evaluators that the run had so far are missing: a config file defines them."""
    missing = [name for name in saved.get('evaluators', ()) if name not in names]
    if missing:
        print(
            f'warning: this run goes on without {", ".join(missing)}: these evaluators are defined '
            f'by the config file that it was started with; give it by --config',
            flush=True,
        )


def _warn_of_lost_rows(
    config: RunConfig, before: Mapping[str, Any], workdir: pathlib.Path, start: int
) -> None:
    """Warns if the last rows of `metrics.jsonl` before the restored step are missing."""
    every = before['train']['log_every']
    expected = start - start % every
    if not expected or 'jsonl' not in config.train.sinks or not peers.is_primary():
        return
    last = last_row(workdir, start)
    if last < expected:
        print(
            f'warning: {workdir}/metrics.jsonl has lost its rows after step {last}, up to step '
            f'{expected}; the run goes on without them',
            flush=True,
        )


def _length_key(config: RunConfig) -> str:
    """Returns the key that sets the length of the run; the others follow from it."""
    keys = [key for key in ('num_epochs', 'num_tokens') if getattr(config.train, key)]
    return f'train.{(keys or ["num_steps"])[0]}'


def _check_length(config: RunConfig, overrides: Mapping[str, Any]) -> None:
    key = _length_key(config)
    if 'train.num_steps' in overrides and key != 'train.num_steps':
        value = getattr(config.train, key.removeprefix('train.'))
        raise UserError(
            f'config.train.num_steps follows from config.{key}={value:g}: set that one, or '
            f'--config.{key}=0 too'
        )


def _begin(trainer: Trainer) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Returns the state of step 0; for weights of another run, also their origin and credits."""
    folder = trainer.config.train.init_from
    if not folder:
        trainer.init()
        return None, None
    path = object_store.to_path(folder, key='config.train.init_from')
    source = runs.Run(path, runs.read_config(path), trainer.tokenizer)
    # Restore in the saved dtype, then cast to this run's config.model.precision.params.
    ours, theirs = trainer.program.abstract_params, source.config.model.precision.params
    saved = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, theirs, sharding=leaf.sharding), ours
    )
    step, params = runs.restore_weights(source, step='latest', weights='raw', abstract=saved)
    params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, ours)
    print(f'beginning with the weights of {folder}, step {step}', flush=True)
    origin = {'workdir': folder, 'step': step, 'weights': runs.weights_hash(source, step)}
    credits = runs.read_credits(source, step).of_derived()
    trainer.begin(params)
    return origin, to_json(credits)


def _check_resumable(saved: dict[str, Any], meta: dict[str, Any], workdir: pathlib.Path) -> None:
    """Prints what changed since the checkpoint.

    Raises:
        UserError: the data or the tokenizer changed, so resuming would not be exact.
    """
    before = to_json(from_json(saved['config'], RunConfig))  # with the keys of today
    changes = differences(before, meta['config'])
    if saved['tokenizer'] != meta['tokenizer']:
        raise UserError(
            f'{workdir} was trained with another tokenizer; choose another --workdir, or start '
            f'over with --fresh'
        )
    if saved['data'] != meta['data']:
        causes = [change for change in changes if change.startswith(DATA_KEYS)]
        causes = [cause for cause in causes if not cause.startswith(SKIP_KEY)]
        cause = '; '.join(causes) or 'the corpus changed, or how it becomes tokens'
        raise UserError(
            f'{workdir} was trained on other batches ({cause}), so it cannot go on exactly; undo '
            f'that, choose another --workdir, or start over with --fresh'
        )
    if changes:
        print('\n'.join(['changed since the checkpoint:', *(f'  {change}' for change in changes)]))


def _check_skipped(
    saved: Mapping[str, Any],
    trainer: Trainer,
    checkpointer: Checkpointer,
    resume_step: int | None,
) -> None:
    """Raises UserError if the batches before the checkpoint are others than those it has seen."""
    steps = checkpointer.steps()
    step = max(steps) if resume_step is None else resume_step
    before = parse_skip_steps(from_json(saved['config'], RunConfig).data.skip_steps)
    changed = before.first_difference(trainer.pipeline.order)
    if changed is None or changed > before.batch_of(step):
        return
    older = [str(each) for each in steps if before.batch_of(each) < changed]
    raise UserError(
        f'{SKIP_KEY}: the checkpoint of step {step} is past batch {changed}, which that changes; '
        f'undo it, or '
        + (f'go back with --resume_step={older[-1]}' if older else 'start over with --fresh')
    )
