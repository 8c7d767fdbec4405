"""The folder of a run: its config, tokenizer and lock, its data, and access to its weights."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax import files, fingerprint, object_store, tokenizer
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.checkpoint.manifest import list_steps, read_document
from gpt_jax.config import RunConfig
from gpt_jax.config_tree import from_json, get_value, set_value, to_json
from gpt_jax.data import locations
from gpt_jax.data.config import DataConfig
from gpt_jax.data.mixture import open_sources
from gpt_jax.data.prepare import prepare
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.data.shards import Shards
from gpt_jax.data.split import TRAIN, VALIDATION
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import abstract_params, parameter_groups
from gpt_jax.optim.lora import LoraConfig
from gpt_jax.optim.trainable import Trainable
from gpt_jax.parallel import consistency, file_systems, lease, peers
from gpt_jax.parameter import map_with_path
from gpt_jax.telemetry.metrics import read_rows
from gpt_jax.telemetry.progress import Progress
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.tokenizer.base import CHAT_TEMPLATE
from gpt_jax.weights.credits import Credits

CONFIG, DERIVED, TOKENIZER, CHECKPOINTS, PROVENANCE, LOCK = (
    'config.json',
    'derived.json',
    'tokenizer',
    'checkpoints',
    'provenance.json',
    'lock',
)
# Knobs that `finalize` derives from others if they are 0, with the derived value. Without
# model.vocab_size, which modes that read no data need.
DERIVATIONS: dict[str, Callable[[RunConfig], int]] = {
    'model.num_kv_heads': lambda config: config.model.num_heads,
    'model.d_ff': lambda config: 4 * config.model.d_model,
    'model.head_dim': lambda config: config.model.d_model // config.model.num_heads,
    'eval.batch_size': lambda config: config.train.batch_size,
}
STAGING, REPLACED = '.saving', '.replaced'  # temporary folders of `save_weights`
NO_CONTENT = {'lost+found', '.DS_Store'}  # created by operating systems in empty folders
LEASE = 'lease'  # replaces the lock on a disk without file locks


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir with its config and tokenizer."""

    workdir: pathlib.Path
    config: RunConfig
    tokenizer: Tokenizer
    draft: RunConfig | None = None  # the config before `finalize`, if known

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of checkpoints."""
        return self.workdir / CHECKPOINTS


def read_config(workdir: pathlib.Path, *, key: str = '--workdir') -> RunConfig:
    """Reads the config that a run was started with; `key` names the folder in errors.

    Raises:
        UserError: the folder is not a run, or its config is damaged.
    """
    # A store has no swaps: nothing is asked there.
    if not object_store.is_remote(workdir) and files.has_unfinished_swap(workdir / REPLACED):
        with lock(workdir, key=key):  # locking undoes the swap
            pass
    if not (workdir / CONFIG).is_file():
        raise UserError(f'{key}={workdir} holds no run: it has no {CONFIG}; train one first')
    values = files.read_json(workdir / CONFIG)
    try:
        return from_json(values, RunConfig)
    except UserError as error:
        raise UserError(f'{workdir / CONFIG}: {error}') from error


def read_draft(workdir: pathlib.Path) -> RunConfig:
    """Reads the config of a run with derived values reset to 0, so that they follow overrides.

    If the run has no list of its derived values, those equal to the derived value are reset.

    Raises:
        UserError: the folder is not a run, or its config is damaged.
    """
    config = read_config(workdir)
    derived = [
        key for key, derive in DERIVATIONS.items() if get_value(config, key) == derive(config)
    ]
    if (workdir / DERIVED).is_file():
        written = files.read_json(workdir / DERIVED)
        if not isinstance(written, list):
            raise UserError(f'{workdir / DERIVED} is not a list of keys; delete it')
        derived = [key for key in DERIVATIONS if key in written]
    for key in derived:
        set_value(config, key, 0)
    return config


def train_whole(config: RunConfig) -> None:
    """Turns LoRA and freezing off in `config`, because `restore_weights` returns merged weights."""
    config.lora, config.train.frozen = LoraConfig(), ()


def read_tokenizer(workdir: pathlib.Path) -> Tokenizer:
    """Reads the tokenizer that a run was trained with."""
    if not object_store.is_remote(workdir):
        return tokenizer.load(workdir / TOKENIZER)
    with tempfile.TemporaryDirectory(prefix='gpt_jax-') as folder:
        local = pathlib.Path(folder)
        object_store.download_folder(workdir / TOKENIZER, local)
        return tokenizer.load(local)


def save_run(run: Run, *, overrides: dict[str, Any], origin: Any = None, data: str = '') -> None:
    """Writes the files for `read_config` and `read_tokenizer`, and the provenance of the run.

    The first process writes for all. `origin` describes the run that provided initial weights,
    `data` is the hash of the corpora.
    """
    if not peers.is_primary():
        return
    with _local_folder(run.workdir / TOKENIZER) as folder:
        run.tokenizer.save(folder)
    provenance = {'command': sys.argv, 'overrides': overrides, 'git_commit': git_commit()}
    devices = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    provenance['environment'] = {'devices': devices, **consistency.code_facts()}
    if origin:
        provenance['init_from'] = origin
    if data:
        provenance['data'] = data
    files.write_json(run.workdir / PROVENANCE, provenance)
    derived = [
        key for key in DERIVATIONS if run.draft is not None and not get_value(run.draft, key)
    ]
    files.write_json(run.workdir / DERIVED, derived)
    files.write_json(run.workdir / CONFIG, to_json(run.config))


def save_weights(
    run: Run, *, step: int, params: Any, meta: Mapping[str, Any], overrides: dict[str, Any]
) -> None:
    """Replaces all checkpoints of the run by one with these weights. Collective.

    Everything is first written to a temporary folder and then swapped in, so a failure leaves the
    old run intact. Other files in the folder are kept. An object store cannot rename: there the old
    checkpoints are deleted after the new one is written, or before it if both have the same step.

    Raises:
        UserError: a file cannot be written.
    """
    if object_store.is_remote(run.workdir):
        with Checkpointer(run.checkpoints, run.config.checkpoint) as checkpointer:
            if step in list_steps(run.checkpoints):
                checkpointer.clear()
            checkpointer.save(step, {'params': params}, meta)
            checkpointer.wait()
            save_run(run, overrides=overrides)
            checkpointer.clear(but=step)
        return
    staged = dataclasses.replace(run, workdir=run.workdir / STAGING)
    try:
        with Checkpointer(staged.checkpoints, run.config.checkpoint) as checkpointer:
            checkpointer.save(step, {'params': params}, meta)
        save_run(staged, overrides=overrides)
        peers.barrier('weights are written')
        if peers.is_primary():
            outdated = [run.checkpoints / str(old) for old in list_steps(run.checkpoints)]
            outdated.append(run.workdir / TOKENIZER / CHAT_TEMPLATE)  # the new one may have none
            outdated = [path for path in outdated if path.exists()]
            new = [staged.checkpoints / str(step), *(staged.workdir / TOKENIZER).iterdir()]
            new += [staged.workdir / name for name in (PROVENANCE, DERIVED, CONFIG)]
            moves = {path: run.workdir / path.relative_to(staged.workdir) for path in new}
            files.swap(moves, outdated, aside=run.workdir / REPLACED)
        peers.barrier('weights are in place')
    finally:
        if peers.is_primary():
            shutil.rmtree(staged.workdir, ignore_errors=True)


@contextlib.contextmanager
def _local_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields `path`, or for an object store a local folder that is uploaded at the end."""
    if not object_store.is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix='gpt_jax-') as folder:
        yield pathlib.Path(folder)
        object_store.upload_folder(pathlib.Path(folder), path)
        for name in set(object_store.list_objects(path)) - set(os.listdir(folder)):
            object_store.remove(path / name)  # left by an earlier run


def read_metrics(workdir: pathlib.Path, names: Sequence[str]) -> dict[tuple[int, str], float]:
    """Reads some metrics of `metrics.jsonl` by step and name; skips damaged lines."""
    rows = read_rows(workdir)
    return {(row['step'], name): row[name] for row in rows for name in names if name in row}


def check_processes(config: RunConfig, workdir: pathlib.Path) -> None:
    """Checks that all processes have the same code, config and workdir.

    Raises:
        UserError: a process differs; names it and the difference.
    """
    if peers.num_processes() == 1:
        return
    config_hash = hash_of(to_json(config))
    facts = {**consistency.code_facts(), 'config': config_hash, 'workdir': str(workdir)}
    consistency.check('comparison of code and config', facts)


def check_data(folder: pathlib.Path, tokenizer: Tokenizer, config: DataConfig) -> None:
    """Checks that all processes have the same tokenizer and data.

    Raises:
        UserError: a process differs; names it.
    """
    if peers.num_processes() == 1:
        return
    sources = open_sources(folder, config, split=TRAIN, tokenizer=tokenizer)
    shards = [source.shards for source in sources]
    shards.append(Shards.open(folder, VALIDATION, tokenizer=tokenizer))
    facts = {
        'tokenizer': tokenizer.fingerprint(),
        'data': hash_of([each.fingerprint for each in shards]),
    }
    consistency.check('comparison of data', facts)


def prepare_data(config: RunConfig) -> pathlib.Path:
    """Calls `prepare` on one process per file system; the other processes wait for it.

    The wait has no time limit, because it uses no barrier. A lost process still ends the run.

    Raises:
        UserError: `prepare` failed; raised on every process.
    """
    if peers.num_processes() == 1:
        return prepare(config.data, config.tokenizer)
    leaders = file_systems.leaders(locations.cache_folder(config.data))
    mine = leaders[peers.process_id()]
    quiet = functools.partial(Progress, quiet=not peers.is_primary())
    folder = None
    if mine == peers.process_id():
        problem = ''
        try:
            folder = prepare(config.data, config.tokenizer, progress=quiet)
        except UserError as error:
            problem = str(error)
        peers.announce(f'prepared/{mine}', problem)
    _wait_for_data(set(leaders), quiet)
    return folder or prepare(config.data, config.tokenizer, progress=quiet)


def _wait_for_data(leaders: set[int], make_progress: Callable[..., Progress]) -> None:
    """Waits until all of `leaders` have prepared their data. Raises UserError if one failed."""
    began = time.monotonic()
    with make_progress(0, unit='s', description='waiting for data') as progress:
        while True:
            answers = {leader: peers.announced(f'prepared/{leader}') for leader in leaders}
            problems = [f'{answer}' for answer in answers.values() if answer]
            if problems:
                raise UserError(problems[0])
            missing = [str(leader) for leader, answer in answers.items() if answer is None]
            if not missing:
                return
            progress.update(time.monotonic() - began, processes=', '.join(missing))
            time.sleep(0.5)


def check_ours(workdir: pathlib.Path, *, key: str = '--workdir') -> None:
    """Rejects a folder with files that are not a run's, because a run might overwrite them.

    A run has a config, or at least the lock of a process that ended before writing the config.

    Raises:
        UserError: the folder is not a run; names it, as `key`, and one of its files.
    """
    if object_store.is_remote(workdir):
        names = set(object_store.list_names(workdir))
    else:
        names = set(os.listdir(workdir)) if workdir.is_dir() else set()
    if not names - NO_CONTENT or _is_run(workdir, names):
        return
    raise UserError(
        f'{key}={workdir} is not empty and holds no run of gpt_jax (it has '
        f'{min(names - NO_CONTENT)}); name a new or an empty folder'
    )


def _is_run(workdir: pathlib.Path, names: set[str]) -> bool:
    """Returns whether a folder with these names was written by a run."""
    if CONFIG in names:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            config = json.loads(object_store.read_bytes(workdir / CONFIG))
            return isinstance(config, dict) and {'model', 'train', 'checkpoint'} <= config.keys()
    if LOCK not in names:
        return False
    if object_store.is_remote(workdir):
        return True
    path = workdir / LOCK
    return path.is_file() and (path.stat().st_size == 0 or path.read_bytes()[:20].isdigit())


@contextlib.contextmanager
def lock(workdir: pathlib.Path, *, key: str = '--workdir') -> Iterator[None]:
    """Locks a workdir for one writer; the lock ends with the process.

    If nothing was written, because the run was rejected, the folder is removed again. The first
    process of a run holds the lock for all. Object stores and some network disks have no locks;
    there a lease is used (`parallel/lease.py`). `key` names the folder in errors.

    Raises:
        UserError: another process holds the lock, the folder has files that are not a run's, or it
            cannot be created.
    """
    if not peers.is_primary():
        yield
        return
    check_ours(workdir, key=key)
    if object_store.is_remote(workdir):
        with lease.hold(workdir / LOCK):
            yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / LOCK, 'a+')  # noqa: SIM115 (closed below, after the run)
    except OSError as error:
        raise files.cannot_write(workdir, error) from error
    with file:
        has_locks = _lock_file(file, workdir, key=key)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            with contextlib.nullcontext() if has_locks else lease.hold(workdir / LEASE):
                # Clean up after a killed process.
                files.undo_swap(workdir / REPLACED)
                shutil.rmtree(workdir / STAGING, ignore_errors=True)
                yield
        finally:
            with contextlib.suppress(OSError):  # not empty, or missing
                (workdir / CHECKPOINTS).rmdir()
            with contextlib.suppress(OSError):
                if os.listdir(workdir) == [LOCK]:
                    (workdir / LOCK).unlink()
                    workdir.rmdir()


def _lock_file(file: IO, workdir: pathlib.Path, *, key: str) -> bool:
    """Locks the open lock file of a workdir; returns False if the disk has no locks.

    Raises:
        UserError: another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # ENOLCK, ENOSYS, EOPNOTSUPP …
            print(
                f'the disk of {workdir} has no file locks ({error.strerror}); the run holds '
                f'it by the file {LEASE}, renewed every {lease.RENEW_SECONDS:.0f} s',
                flush=True,
            )
            return False
        file.seek(0)
        raise UserError(
            f'{key}={workdir} is in use by process {file.read().strip() or "?"}; wait for '
            f'it to end or choose another folder'
        ) from error
    return True


def restore_weights(
    run: Run, *, step: int | str, weights: str, abstract: Any = None
) -> tuple[int, Any]:
    """Restores a checkpoint; returns its step and parameters (stored layout, adapters merged).

    Args:
      step: a number, 'latest' or 'best'.
      weights: 'raw' or 'ema'.
      abstract: shapes with shardings of the result; by default all on the first device.

    Raises:
        UserError: the checkpoint does not exist, or the run has no moving average.
    """
    trained_by = read_config(run.workdir)
    if weights == 'ema' and not trained_by.train.ema_decay:
        raise UserError('--weights=ema: the run has none (config.train.ema_decay was 0); use raw')
    item = 'params' if weights == 'raw' else 'ema'
    if abstract is None:
        abstract = nn.unbox(abstract_params(run.config.model))
    trainable = Trainable(
        lora=trained_by.lora,
        frozen=trained_by.train.frozen,
        groups=parameter_groups(run.config.model),
    )
    trained, base = _abstract_parts(trainable, abstract)
    with Checkpointer(run.checkpoints, run.config.checkpoint, read_only=True) as checkpointer:
        restored = checkpointer.restore({item: trained, 'base': base}, step=step)
    if restored is None:
        raise UserError(f'{run.workdir} has no checkpoint yet; train first')
    trained, base = restored.items[item], restored.items['base']
    if trainable.is_all:
        return restored.step, trained
    on_devices = any(leaf.sharding for leaf in jax.tree.leaves(abstract))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract) if on_devices else None
    return restored.step, jax.jit(trainable.join, out_shardings=shardings)(trained, base)


def is_training(meta: Mapping[str, Any]) -> bool:
    """Returns whether the checkpoint with this meta can be resumed; others hold weights only."""
    return 'tokenizer' in meta


def read_credits(run: Run, step: int) -> Credits:
    """Returns the credits of a checkpoint's weights; older checkpoints have none.

    Raises:
        UserError: the credits were written by another version of this program.
    """
    return from_json(read_document(run.checkpoints, step)['meta'].get('credits') or {}, Credits)


def weights_hash(run: Run, step: int) -> str:
    """Returns a hash of the weights in a checkpoint, from their stored fingerprints."""
    leaves = read_document(run.checkpoints, step)['leaves']
    return hash_of(
        {
            name: leaf['fingerprint']
            for name, leaf in leaves.items()
            if name.startswith(('params/', 'base/'))
        }
    )


def _abstract_parts(trainable: Trainable, abstract: Any) -> tuple[Any, Any]:
    """Returns shapes and shardings of a run's trained part and its base.

    Uses the shardings of `abstract`; LoRA adapters, which are small, are replicated.
    """
    parts = jax.eval_shape(trainable.split, abstract, jax.random.key(0))
    given = fingerprint.named_leaves(abstract)
    sharding = next(iter(given.values())).sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())

    def place(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        whole = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return given.get(path, whole)

    return tuple(map_with_path(place, part) for part in parts)


def git_commit() -> str:
    """Returns the commit of this code, with a '+' if files differ from it; '' outside git."""
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
