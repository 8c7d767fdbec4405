"""The tree of a run's knobs, and the functions that load a config file and check it."""

import contextlib
import dataclasses
import enum
import importlib.util
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from gpt_jax.checkpoint import CheckpointConfig
from gpt_jax.config_tree import (
    INT32_MAX,
    check_domains,
    count,
    file_path,
    finite,
    fraction,
    freeze,
    from_json,
    real,
    seed32,
    suggest,
    to_json,
    whole,
)
from gpt_jax.data.config import DataConfig
from gpt_jax.data.skipped import parse_skip_steps
from gpt_jax.errors import UserError
from gpt_jax.evaluate.tasks import check_names
from gpt_jax.inference.config import SampleConfig, finalize_sample
from gpt_jax.model.config import ModelConfig, finalize_model
from gpt_jax.optim import OptimizerConfig
from gpt_jax.optim.adamw import AdamW
from gpt_jax.optim.lora import LoraConfig
from gpt_jax.optim.schedule import ScheduleConfig
from gpt_jax.parallel.mesh import MeshConfig
from gpt_jax.parallel.runtime import RuntimeConfig
from gpt_jax.serve.config import ServeConfig
from gpt_jax.telemetry.metrics import SINKS
from gpt_jax.tokenizer import TokenizerConfig


class LossKernel(enum.StrEnum):
    AUTO = 'auto'
    XLA = 'xla'
    TRITON = 'triton'


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
    """Settings for the length of the run, the batch, the loss and the reporting."""

    batch_size: int = count(32)  # sequences per step, over all devices
    num_steps: int = count(1000)  # length of the run in steps, unless one of the next two is set
    num_tokens: int = whole(0, high=2**53)  # length of the run in training tokens; 0: off
    num_epochs: float = real(0.0, 0, 1e9)  # length of the run in passes over the corpus; 0: off
    grad_accumulation: int = whole(0)  # micro-batches per step; 0: by backend and size
    ema_decay: float = fraction(0.0)  # exponential moving average of the weights; 0: off
    init_from: str = file_path()  # a workdir; the run starts with its last weights and tokenizer
    frozen: tuple[str, ...] = ()  # paths of parameters that are not trained, as regexes
    clip_norm: float = finite(1.0)  # largest global gradient norm; 0: no clipping
    z_loss: float = finite(0.0)  # weight of log(Z)², which keeps the logits from drifting; 0: off
    max_bad_steps: int = count(10)  # consecutive non-finite steps that end the run
    max_seconds: float = real(0.0, 0, 1e9)  # of training, which end the run; 0: off
    step_timeout: float = real(0.0, 0, 1e9)  # seconds without a step that end the run; 0: off
    loss_kernel: LossKernel = LossKernel.AUTO  # auto: the backend's fastest
    loss_chunk_bytes: int = whole(0, high=2**40)  # of float32 logits held at once; 0: by backend
    steps_per_call: int = whole(0)  # steps per call of the device; 0: by backend and size
    deterministic: bool = False  # makes GPU runs bit-reproducible, at some cost; others always are
    log_every: int = count(10)  # steps between rows of metrics
    sinks: tuple[str, ...] = ('jsonl', 'tensorboard')  # where metrics go; also: wandb


@dataclasses.dataclass(slots=True, kw_only=True)
class EvalConfig:
    """Evaluation on validation windows during training, and by `--mode evaluate`."""

    every: int = whole(200)  # steps between evaluations; 0: only at the end
    at_end: bool = True  # also evaluate after the last step
    batch_size: int = whole(0)  # windows per batch; 0: train.batch_size
    batches: int = whole(20)  # validation batches used during training; 0: the whole split
    tasks: tuple[str, ...] = ()  # tasks during training: blimp, lambada, … (evaluate/tasks.py)
    tasks_every: int = whole(0)  # steps between runs of the tasks; 0: only at the end
    task_data: str = file_path()  # files and folders with their rows, separated by commas; or hub
    task_limit: int = whole(0)  # maximum rows per task, or per paradigm or subject; 0: all
    stride: int = whole(0)  # tokens between windows of a text in task perplexity; 0: max_seq_len


def _default(cls: type) -> Any:
    return dataclasses.field(default_factory=cls)


@dataclasses.dataclass(slots=True, kw_only=True)
class RunConfig:
    """All knobs of one run; each branch is defined beside the code that reads it."""

    config_branch = ''  # the whole tree

    seed: int = seed32(0)  # of initialisation, data order and dropout
    tokenizer: TokenizerConfig = _default(TokenizerConfig)
    data: DataConfig = _default(DataConfig)
    model: ModelConfig = _default(ModelConfig)
    lora: LoraConfig = _default(LoraConfig)
    optimizer: OptimizerConfig = _default(AdamW)  # a flag chooses too: --config.optimizer=muon
    schedule: ScheduleConfig = _default(ScheduleConfig)
    train: TrainConfig = _default(TrainConfig)
    eval: EvalConfig = _default(EvalConfig)
    sample: SampleConfig = _default(SampleConfig)
    serve: ServeConfig = _default(ServeConfig)
    checkpoint: CheckpointConfig = _default(CheckpointConfig)
    mesh: MeshConfig = _default(MeshConfig)
    runtime: RuntimeConfig = _default(RuntimeConfig)


def finalize(config: RunConfig, *, vocab_size: int, train_tokens: int = 0) -> RunConfig:
    """Returns a frozen copy with every derived value filled in and every rule checked.

    `vocab_size` is the tokenizer's, used unless the config sets a larger one for the model.
    `train_tokens` is the number of tokens of the corpus, for `config.train.num_epochs`.

    Raises:
        UserError: a value cannot work; the message names its key and the fix.
    """
    config = from_json(to_json(config), RunConfig)  # a copy with all values of the declared types
    check_domains(config)
    if config.model.vocab_size and config.model.vocab_size < vocab_size:
        raise UserError(
            f'config.model.vocab_size={config.model.vocab_size} is smaller than the '
            f"tokenizer with its {vocab_size} tokens; raise it, or use 0 to take the tokenizer's"
        )
    config.model.vocab_size = config.model.vocab_size or vocab_size
    finalize_model(config.model)
    _finalize_train(config, train_tokens)
    # A flag gives a tuple of one string, in which commas separate entries.
    config.data.skip_steps = _split(config.data.skip_steps)
    parse_skip_steps(config.data.skip_steps)
    finalize_sample(config.sample)
    return freeze(config)


def call_cadences(config: RunConfig) -> dict[str, int]:
    """Returns the intervals in steps (0: never) of actions between two device calls, by key."""
    return {
        'config.eval.every': config.eval.every,
        'config.eval.tasks_every': config.eval.tasks_every,
        'config.sample.every': config.sample.every,
        'config.checkpoint.save_every': config.checkpoint.save_every,
    }


def _finalize_train(config: RunConfig, train_tokens: int) -> None:
    """Fills the derived values of `config.train` and `config.eval`, and checks them."""
    train, evaluation = config.train, config.eval
    if train.batch_size % (train.grad_accumulation or 1):
        raise UserError(
            f'config.train.batch_size={train.batch_size} is not divisible by '
            f'config.train.grad_accumulation={train.grad_accumulation}; change one of them'
        )
    for name, every in call_cadences(config).items():
        if train.steps_per_call and every % train.steps_per_call:
            raise UserError(
                f'{name}={every} is not a multiple of config.train.steps_per_call='
                f'{train.steps_per_call}; change one of them'
            )
    if train.num_tokens and train.num_epochs:
        raise UserError('set only one of config.train.num_tokens and config.train.num_epochs')
    for name in train.sinks:
        if name not in SINKS:
            raise UserError(f'config.train.sinks: there is no {name!r}; ' + suggest(name, [*SINKS]))
    if train.frozen and config.lora.rank:
        raise UserError(
            'config.train.frozen has no effect with config.lora.rank > 0, which freezes all '
            'weights; unset one of them'
        )
    dtype = config.model.precision.params
    if train.ema_decay and dtype != 'float32' and not config.lora.rank:
        raise UserError(
            f'config.train.ema_decay={train.ema_decay} needs config.model.precision.params='
            f'float32: the steps of an average are too small for {dtype}'
        )
    _finalize_tasks(evaluation, config.model.max_seq_len)
    tokens_per_step = train.batch_size * config.model.max_seq_len
    wanted = train.num_tokens or train.num_epochs * train_tokens
    if wanted:
        train.num_steps = math.ceil(wanted / tokens_per_step)
        if train.num_steps > INT32_MAX:
            key = 'num_tokens' if train.num_tokens else 'num_epochs'
            raise UserError(
                f'config.train.{key}={getattr(train, key):g} makes {train.num_steps} steps, more '
                f'than {INT32_MAX}; lower it or raise config.train.batch_size'
            )
    evaluation.batch_size = evaluation.batch_size or train.batch_size


def _finalize_tasks(evaluation: EvalConfig, max_seq_len: int) -> None:
    """Rejects unknown tasks. Their data is checked at start-up."""
    # A flag gives a tuple of one string, in which commas separate names as in --tasks.
    evaluation.tasks = _split(evaluation.tasks)
    check_names(evaluation.tasks, key='config.eval.tasks')
    if evaluation.stride > max_seq_len:
        raise UserError(
            f'config.eval.stride={evaluation.stride} must be at most config.model.max_seq_len='
            f'{max_seq_len}, or tokens would be left out; 0 takes that'
        )


def _split(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for text in texts for part in text.split(','))


# Configs that became a variant of another file; their old names load it.
MOVED_CONFIGS = {f'gpt2_{size}.py': f'gpt2.py:{size}' for size in ('124m', '355m', '774m', '1558m')}


def load_config(spec: str) -> RunConfig:
    """Loads the config of `FILE.py` or `FILE.py:variant`.

    Raises:
        UserError: the file is missing, fails, or has no such variant.
    """
    return load_config_file(spec)[0]


def load_config_file(spec: str) -> tuple[RunConfig, Callable[[RunConfig], list[Any]]]:
    """Loads `FILE.py:variant`; returns its config, and the function that makes its evaluators.

    The function calls the file's `evaluators(config)`; without one, it returns [].

    Raises:
        UserError: the file is missing, fails, or has no such variant. The function raises it too.
    """
    module, variant = _load_module(spec)
    with _explain(spec):
        config = module.get_config(variant)
    if not isinstance(config, RunConfig):
        raise UserError(f'--config={spec}: get_config returned {type(config)}, not a RunConfig')
    try:  # an unset or replaced branch has no keys that flags could set
        config = from_json(to_json(config), RunConfig)
    except UserError as error:
        raise UserError(f'--config={spec}: {error}') from error

    def evaluators(config: RunConfig) -> list[Any]:
        with _explain(spec):
            return list(module.evaluators(config)) if hasattr(module, 'evaluators') else []

    return config, evaluators


def _load_module(spec: str) -> tuple[ModuleType, str]:
    """Runs the config file of `FILE.py` or `FILE.py:variant`; returns it and the variant.

    Raises:
        UserError: the file is missing or fails.
    """
    name, _, variant = spec.partition(':')
    path = pathlib.Path(name)
    if path.name in MOVED_CONFIGS and not variant and not path.is_file():
        file, _, variant = MOVED_CONFIGS[path.name].partition(':')
        path = path.with_name(file)
    if not path.is_file():
        shipped = [str(each) for each in sorted(pathlib.Path('configs').glob('*.py'))]
        hint = suggest(name, shipped) if shipped else 'the shipped ones are in configs/'
        raise UserError(f'--config={name}: no such file; {hint}')
    loader = importlib.util.spec_from_file_location(f'gpt_jax_config_{path.stem}', path)
    if loader is None:
        raise UserError(f'--config={name}: not a Python file')
    module = importlib.util.module_from_spec(loader)
    root = str(path.resolve().parents[1])  # so that one config can import another
    if root not in sys.path:
        sys.path.append(root)
    with _explain(spec):
        loader.loader.exec_module(module)
    return module, variant


@contextlib.contextmanager
def _explain(spec: str) -> Iterator[None]:
    """Turns an exception of a config file into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'--config={spec}: {type(error).__name__}: {error}') from error


def unknown_variant(variant: str, known: Iterable[str]) -> UserError:
    """Returns the error for a config file to raise if it has no such variant."""
    names = ', '.join(f':{name}' for name in known if name) or 'none'
    return UserError(f'--config: unknown variant :{variant}; this file has {names}')


def run_name(spec: str) -> str:
    """Returns the name of the default workdir: `configs/x.py:variant` -> `x-variant`."""
    name, _, variant = spec.partition(':')
    return pathlib.Path(name).stem + (f'-{variant}' if variant else '')
