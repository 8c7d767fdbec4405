"""Train in a workdir (the default mode): prepares missing data, resumes, evaluates, saves."""

import contextlib
import math
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

import jax
import optax
from absl import flags as absl_flags

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import INT32_MAX, differences, to_json
from gpt_jax.data import mixture
from gpt_jax.data.prepare import filled_splits
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.data.shards import Shards
from gpt_jax.data.split import VALIDATION
from gpt_jax.errors import UserError
from gpt_jax.parallel import peers, probe, runtime
from gpt_jax.telemetry.metrics import MetricsWriter, last_row
from gpt_jax.telemetry.progress import Progress
from gpt_jax.telemetry.report import format_table
from gpt_jax.train import loop
from gpt_jax.train.host_memory import check_host_memory
from gpt_jax.train.memory import explain_out_of_memory
from gpt_jax.train.session import Session
from gpt_jax.train.startup_report import describe_passes, summarize, warn_of_passes
from gpt_jax.train.state import TrainState
from gpt_jax.train.stop_signal import StopAgreement, StopSignal
from gpt_jax.train.watchdog import Watchdog

UNFINISHED = 75  # exit status EX_TEMPFAIL: saved, run me again
INTERRUPTED = 130  # the shell's status for Ctrl-C
# Changing one of these changes the batch of a step.
DATA_KEYS = ('config.train.batch_size', 'config.model.max_seq_len', 'config.seed', 'config.data.')


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


def run(
    flags: absl_flags.FlagValues,
    config: RunConfig,
    workdir: pathlib.Path,
    overrides: dict[str, Any],
) -> int:
    """Trains to the end of the run, or until a stop signal; returns the exit status."""
    if flags.fresh and flags.resume_step is not None:
        raise UserError('--fresh and --resume_step exclude each other; leave one out')
    draft = finalize(config, vocab_size=1)  # fail fast, before any data is read
    _check_length(config, overrides)
    if VALIDATION not in filled_splits(config.data):
        raise UserError(
            f'config.data.split={config.data.split} leaves nothing to validate on; it is for '
            f'folders that others name in config.data.mixture'
        )
    runtime.initialize(config.runtime)
    check_host_memory(draft)
    runs.check_processes(config, workdir)
    with runs.lock(workdir):
        folder = runs.prepare_data(config)
        tokenizer = make_run_tokenizer(
            folder, config.tokenizer, chat_template=config.data.chat_template
        )
        tokens = Shards.open(folder, 'train', tokenizer=tokenizer).num_tokens
        tokens = mixture.tokens_per_pass(tokens, config.data)
        final = finalize(config, vocab_size=tokenizer.vocab_size, train_tokens=tokens)
        runs.check_data(folder, tokenizer, config.data)
        if peers.num_processes() > 1:
            probe.check_shared_folder(workdir)
        session = Session(final, tokenizer, folder)
        session.check_texts()
        this_run = runs.Run(workdir, final, tokenizer, draft=config)
        with (
            Checkpointer(this_run.checkpoints, final.checkpoint) as checkpointer,
            StopSignal() as signals,
            explain_out_of_memory(session.program, final),
        ):
            stop = StopAgreement(signals, session.program.mesh)
            if flags.fresh:
                checkpointer.clear()
            if flags.resume_step is not None:
                checkpointer.discard_after(flags.resume_step)
            outcome = _train(session, this_run, checkpointer, stop, overrides)
    if outcome is loop.Outcome.COMPLETE:
        return 0
    if flags.fresh:
        print('leave --fresh out then: it would begin anew')
    if flags.resume_step is not None:
        print('leave --resume_step out then: it would go back again')
    return INTERRUPTED if stop.received == signal.SIGINT else UNFINISHED


def _train(
    session: Session,
    this_run: runs.Run,
    checkpointer: Checkpointer,
    stop: StopAgreement,
    overrides: dict[str, Any],
) -> loop.Outcome:
    """Restores the state, prints the summary of the run, and runs the loop."""
    config, workdir = session.config, this_run.workdir
    meta = {
        'config': to_json(config),
        'data': session.pipeline.identity,
        'tokenizer': session.tokenizer.fingerprint(),
    }
    saved = checkpointer.meta()
    if saved is not None:
        if not runs.is_training(saved):
            raise UserError(
                f'{workdir} holds weights and no training to go on with; train from them in '
                f'another --workdir with --config.train.init_from={workdir}'
            )
        _check_resumable(saved, meta, workdir)
    passes = session.count_passes(config.train.num_steps)
    text = f'{session.text_tokens:,} tokens to train on, {describe_passes(passes)}'
    print(
        format_table(str(workdir), summarize(session.program, config) | {'text': text}), flush=True
    )
    keys = [f'config.{_length_key(config)}']
    if keys == ['config.train.num_steps']:  # else the number of steps follows from the batch size
        keys.append('config.train.batch_size')
    warn_of_passes(passes, keys=keys)
    _warn_of_warmup(config)
    restored = checkpointer.restore(_items(session.program.abstract_state))
    start = 0 if restored is None else restored.step
    # If the run stopped before the evaluation of this step was done, do it now.
    evaluate_first = (
        bool(config.train.init_from)
        if restored is None
        else saved.get('eval_loss') is None
        and (start == config.train.num_steps or loop.due(config.eval.every, start))
    )
    if start > config.train.num_steps or (start == config.train.num_steps and not evaluate_first):
        print(
            f'{workdir} is complete: {start} steps. To see it write: --mode generate; to go on: '
            f'--config.{_length_key(config)}=N; to start over: --fresh'
        )
        return loop.Outcome.COMPLETE
    if restored is not None:
        state = TrainState(**restored.items)
        meta |= {key: saved.get(key) for key in ('init_from', 'credits')}
        print(f'resuming at step {start}', flush=True)
    else:
        state, meta['init_from'], meta['credits'] = _begin(session)

    def way_back() -> str:
        steps = ', '.join(map(str, checkpointer.steps()))
        if not steps:
            return ''
        return (
            f'. The same command resumes at the last checkpoint, --resume_step=N at an older one '
            f'(there are {steps})'
        )

    def keep_sample(step: int, text: str) -> None:
        if peers.is_primary():
            files.write_text(workdir / 'samples' / f'{step}.txt', text + '\n')

    norm = jax.jit(optax.tree.norm)

    def save(state: TrainState, step: int, eval_loss: float | None) -> None:
        if not math.isfinite(float(norm(state.params))):
            raise UserError(
                f'the weights after step {step} are not finite, so they are not saved{way_back()}'
            )
        checkpointer.save(step, _items(state), meta | {'eval_loss': eval_loss}, eval_loss=eval_loss)

    if restored is not None:
        _warn_of_lost_rows(config, saved['config'], workdir, start)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            MetricsWriter(
                workdir,
                config.train.sinks if peers.is_primary() else (),
                resume_step=None if restored is None else start,
            )
        )
        progress = stack.enter_context(
            Progress(
                config.train.num_steps,
                unit='steps',
                description='train',
                start=start,
                quiet=not peers.is_primary(),
            )
        )
        watchdog = stack.enter_context(Watchdog(config.train.step_timeout))
        hooks = loop.Hooks(
            evaluate=session.evaluate,
            measure=session.measure if config.eval.tasks else None,
            sample=session.sample,
            save=save,
            set_loss=checkpointer.set_loss,
            keep_sample=keep_sample,
            way_back=way_back,
            write=writer.write,
            flush=writer.flush,
            stop=stop.requested,
            alive=watchdog.beat,
            pause=watchdog.patient,
            throughput=session.throughput,
        )
        runs.save_run(this_run, overrides=overrides, origin=meta['init_from'])
        best = checkpointer.best_step()
        _, outcome = loop.run(
            session.program,
            config,
            state=state,
            batches=session.batches(start),
            hooks=hooks,
            progress=progress,
            best_loss=math.inf if best is None else checkpointer.meta(best)['eval_loss'],
            evaluate_first=evaluate_first,
        )
        with watchdog.patient():
            checkpointer.wait()
    if outcome is loop.Outcome.COMPLETE:
        print(f'complete: {config.train.num_steps} steps in {workdir}')
    else:
        print(f'saved in {workdir}; the same command goes on from there')
    return outcome


def _warn_of_warmup(config: RunConfig) -> None:
    """Warns if the run ends before its warm-up does."""
    steps, warmup = config.train.num_steps, config.schedule.warmup_steps
    if warmup >= steps:
        reached = config.optimizer.learning_rate * steps / (warmup + 1)
        print(
            f'warning: config.schedule.warmup_steps={warmup} is not less than the {steps} steps of '
            f'the run, so the learning rate reaches {reached:.3g} only; lower it',
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


def _begin(session: Session) -> tuple[TrainState, dict[str, Any] | None, dict[str, Any] | None]:
    """Returns the state of step 0; for weights of another run, also their origin and credits."""
    folder = session.config.train.init_from
    if not folder:
        return session.init(), None, None
    path = object_store.to_path(folder, key='config.train.init_from')
    source = runs.Run(path, runs.read_config(path), session.tokenizer)
    # Restore in the saved dtype, then cast to this run's config.model.param_dtype.
    ours, theirs = session.program.abstract_params, source.config.model.param_dtype
    saved = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, theirs, sharding=leaf.sharding), ours
    )
    step, params = runs.restore_weights(source, step='latest', weights='raw', abstract=saved)
    params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, ours)
    print(f'beginning with the weights of {folder}, step {step}', flush=True)
    origin = {'workdir': folder, 'step': step, 'weights': runs.weights_hash(source, step)}
    credits = runs.read_credits(source, step).of_derived()
    return session.begin(params), origin, to_json(credits)


def _items(state: TrainState) -> dict[str, Any]:
    """Returns the state by name, so that the weights can be read without the optimizer state."""
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def _check_resumable(saved: dict[str, Any], meta: dict[str, Any], workdir: pathlib.Path) -> None:
    """Prints what changed since the checkpoint.

    Raises:
        UserError: the data or the tokenizer changed, so resuming would not be exact.
    """
    changes = differences(saved['config'], meta['config'])
    if saved['tokenizer'] != meta['tokenizer']:
        raise UserError(
            f'{workdir} was trained with another tokenizer; choose another --workdir, or start '
            f'over with --fresh'
        )
    if saved['data'] != meta['data']:
        causes = [change for change in changes if change.startswith(DATA_KEYS)]
        cause = '; '.join(causes) or 'the corpus changed, or how it becomes tokens'
        raise UserError(
            f'{workdir} was trained on other batches ({cause}), so it cannot go on exactly; undo '
            f'that, choose another --workdir, or start over with --fresh'
        )
    if changes:
        print('\n'.join(['changed since the checkpoint:', *(f'  {change}' for change in changes)]))
