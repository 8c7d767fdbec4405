"""The table at the start of a run: what it really uses."""

from collections.abc import Sequence

import jax

from gpt_jax.config import RunConfig
from gpt_jax.model.config import MatmulPrecision, ModelConfig
from gpt_jax.model.gpt import abstract_params, count_active_params, count_params, describe_mlps
from gpt_jax.model.parametrization import describe_base, is_mup
from gpt_jax.parallel.rules import undivided
from gpt_jax.telemetry.chips import memory_size
from gpt_jax.train.flops import train_flops_per_token
from gpt_jax.train.memory import bytes_per_device
from gpt_jax.train.program import Program

_MANY_PASSES = 10  # over a text, after which a model repeats it


def summarize(program: Program, config: RunConfig) -> dict[str, str]:
    """Returns the table's rows: devices, model, and the choices where the config said `auto`."""
    model, train, kernels = config.model, config.train, program.model.kernels
    devices = program.mesh.devices.flatten()
    tokens = train.batch_size * model.max_seq_len
    held = bytes_per_device(program.abstract_state)
    memory = memory_size(devices[0].device_kind)
    kind = devices[0].device_kind + (f' ({memory:.0f} GiB)' if memory else '')
    trained = sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state.params))
    part = (
        {} if program.abstract_state.base is None else {'trained': _describe_part(config, trained)}
    )
    return {
        'devices': f'{len(devices)} x {kind}, '
        f'{_count(jax.process_count(), "process", "processes")}, jax {jax.__version__}',
        'mesh': _describe_mesh(program, config),
        'parameters': f'{count_params(model):,}{_describe_active(model)} (state '
        f'{held / 2**20:,.1f} MiB per device)',
        **part,
        'model': f'{model.num_layers} layers, d_model {model.d_model}, '
        f'{describe_mlps(model)}, {model.attention.describe(model)}, '
        f'vocabulary {model.vocab_size:,} (table {model.padded_vocab_size:,}), '
        f'context {model.max_seq_len}, {model.position} positions',
        **({'base model': describe_base(model)} if is_mup(model) else {}),
        'kernels': f'attention {kernels.attention}, norm {kernels.norm}, '
        f'loss {program.loss_kernel}',
        'dtypes': f'parameters {model.precision.params}, compute {model.precision.compute}'
        + _describe_products(model),
        'layers': f'{"scanned" if program.model.scan else "unrolled"}, '
        f'remat {model.execution.remat}',
        'XLA options': ', '.join(program.compiler_options) or "XLA's defaults",
        'optimizer': f'{type(config.optimizer).__name__}, learning rate '
        f'{config.optimizer.learning_rate:g} ({config.schedule.kind})',
        'batch': f'{train.batch_size} x {model.max_seq_len} = {tokens:,} tokens per step, '
        f'{_count(program.micro_batches, "micro-batch", "micro-batches")}, '
        f'{_count(program.steps_per_call, "step", "steps")} per call',
        'work': f'{train.num_steps:,} steps, {train.num_steps * tokens:,} tokens, '
        f'{train_flops_per_token(model, length=model.max_seq_len) * tokens:.3g} FLOPs per step'
        + (f', at most {train.max_seconds:,g} s' if train.max_seconds else ''),
    }


def _describe_active(model: ModelConfig) -> str:
    active = count_active_params(model)
    return f', {active:,} active per token' if active < count_params(model) else ''


def _count(number: int, one: str, several: str) -> str:
    return f'{number} {one if number == 1 else several}'


def describe_passes(passes: float) -> str:
    """Describes how often a run reads its training text."""
    number = f'{passes:,.0f}' if passes >= 10 else f'{passes:.2g}'
    return f'{number} {"pass" if number == "1" else "passes"} over your text'


def warn_of_passes(passes: float, *, keys: Sequence[str]) -> None:
    """Prints a warning where a run reads its text so often that it learns it by heart.

    Args:
      passes: how often.
      keys: the knobs to lower.
    """
    if passes > _MANY_PASSES:
        print(
            f'warning: {describe_passes(passes)} are so many that the model will learn it by '
            f'heart; lower {" or ".join(keys)}, or give it more text',
            flush=True,
        )


def _describe_products(model: ModelConfig) -> str:
    """Names the dtype of products where it is not the compute dtype."""
    if model.precision.matmul == MatmulPrecision.DEFAULT:
        return ''
    return f', products of {model.precision.matmul}'


def _describe_part(config: RunConfig, trained: int) -> str:
    """Describes what is trained where it is not everything."""
    lora = config.lora
    if lora.rank:
        return f'{trained:,} in adapters of rank {lora.rank} on {", ".join(lora.targets)}'
    return f'{trained:,}, frozen are {", ".join(config.train.frozen)}'


def _describe_mesh(program: Program, config: RunConfig) -> str:
    """Describes the axes that split something, and what they could not split."""
    mesh = program.mesh
    split = [f'{axis}={size}' for axis, size in mesh.shape.items() if size > 1]
    whole = undivided(abstract_params(config.model), mesh)
    return (
        (' x '.join(split) or 'one device')
        + (', pmap' if program.replicas else '')
        + (f'; whole on every device: {", ".join(whole)}' if whole else '')
    )
