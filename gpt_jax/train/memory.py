"""The memory per device of a training step, by formula, and the overrides that reduce it.

The formula ranks the overrides and `gpt_jax.compile_check` verifies them with XLA. A run that is
out of memory gets the same advice.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import from_json, to_json
from gpt_jax.errors import UserError
from gpt_jax.model.config import AttentionKernel, ModelConfig, Remat
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.model.layer_stack import Stack, layer_stacks
from gpt_jax.model.remat import ATTENTION, PRODUCT, REMAT_KEEPS
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import parts
from gpt_jax.parameter import Parameter, Role
from gpt_jax.telemetry.chips import CHIPS, GIB
from gpt_jax.train.loss import chunk_count
from gpt_jax.train.program import Program, make_program

Overrides = dict[str, Any]  # 'train.grad_accumulation' -> value
# From the mildest: the less a layer keeps, the more it recomputes.
REMAT_BY_MEMORY = (
    Remat.NONE,
    Remat.DOTS_AND_ATTENTION,
    Remat.DOTS,
    Remat.ATTENTION,
    Remat.FULL,
)
# Trees of gradients that XLA holds to accumulate micro-batches: the sum, the addend, copies of both
# (GPT-2 1558M on a TPU v5p; one tree without micro-batches).
ACCUMULATED_GRADIENTS = 4
OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'  # in the out-of-memory errors of all XLA backends
GPU_FRACTION = 0.75  # of a GPU's memory that JAX takes, unless one of these variables is set
GPU_FRACTION_VARIABLES = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The peak memory of a step in bytes per device, by purpose."""

    parameters: float
    optimizer_state: float  # moments, moving average, counters
    gradients: float
    logits: float  # of one chunk of the loss, and their gradient
    activations: float  # kept by the layers for backward; also cast weights and the loss's table

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    def describe(self) -> str:
        """Returns `parameters 2.90, optimizer state 5.80, … GiB`."""
        parts = [
            f'{name.replace("_", " ")} {value / GIB:.2f}'
            for name, value in dataclasses.asdict(self).items()
        ]
        return ', '.join(parts) + ' GiB'


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes per device of a tree of (abstract) arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def estimate_memory(program: Program, config: RunConfig) -> MemoryPlan:
    """Estimates memory from the state's shardings and from what a layer keeps for backward.

    The latter depends on `config.model.execution.remat`. The constants of a layer without remat
    fit what XLA needs for GPT-2 124M on a TPU v5e (the table in `model/remat.py`).
    """
    model, mesh = config.model, program.mesh
    trained = bytes_per_device(program.abstract_state.params)
    parameters = trained + bytes_per_device(program.abstract_state.base)
    rows = math.ceil(config.train.batch_size / program.micro_batches / parts('batch', mesh))
    length = model.max_seq_len // parts('length', mesh)
    vocab = model.padded_vocab_size // parts('vocab', mesh, size=model.padded_vocab_size)
    itemsize = jnp.dtype(model.precision.compute).itemsize
    logits = rows * length * vocab
    chunk = logits / chunk_count(length, 4 * logits, program.loss_chunk_bytes)
    table = vocab * model.d_model * (4 + itemsize)  # output table and gradient, columns gathered
    cast = parameters * itemsize / 4 if itemsize < 4 else 0  # the weights in the compute dtype
    stacks = layer_stacks(model)
    kept = sum(
        len(stack.layers) * _kept_bytes(program, model, stack, model.execution.remat)
        for stack in stacks
    )
    if model.execution.remat != Remat.NONE:  # plus the one layer that is being recomputed
        kept += max(_kept_bytes(program, model, stack, Remat.NONE) for stack in stacks)
    return MemoryPlan(
        parameters=parameters,
        optimizer_state=bytes_per_device(program.abstract_state) - parameters,
        gradients=trained * (1 if program.micro_batches == 1 else ACCUMULATED_GRADIENTS),
        logits=chunk * (4 + itemsize),
        activations=rows * length * kept + table + cast,
    )


def _kept_bytes(program: Program, model: ModelConfig, stack: Stack, remat: Remat) -> float:
    """Returns the bytes per token that a layer of a stack keeps for its backward pass."""
    mesh = program.mesh
    itemsize = jnp.dtype(model.precision.compute).itemsize
    score_heads = model.attention.score_heads(model)
    local_heads = score_heads / parts('heads', mesh, size=model.num_heads)
    inputs, outputs = _widths(model, stack, mesh)
    attention = inputs['attention/output/kernel'] * score_heads / model.num_heads
    names = (PRODUCT, ATTENTION) if remat == Remat.NONE else REMAT_KEEPS[remat]
    kept = itemsize * (
        model.d_model
        + (sum(outputs.values()) if PRODUCT in names else 0)
        + (attention if ATTENTION in names else 0)
    )
    if remat == Remat.NONE:
        ff = max((outputs[path] for path in outputs if path.startswith('mlp/')), default=0)
        kept += 4 * (7 * model.d_model + 4 * ff)  # norms and activation functions, in float32
        if program.model.kernels.attention in (AttentionKernel.XLA, AttentionKernel.BLOCKED):
            kept += (4 + itemsize) * local_heads * model.max_seq_len  # scores and their softmax
    return kept


def _widths(
    model: ModelConfig, stack: Stack, mesh: Mesh
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the inputs and the outputs per token and device of each hidden matrix of a stack.

    Keys are paths below the stack. A matrix of experts has those of the experts that a token uses.
    """
    groups = parameter_groups(model)

    def width(each: Parameter, axes: tuple[int, ...]) -> float:
        sizes = [(each.names[axis], each.value.shape[axis]) for axis in axes]
        experts = math.prod(each.value.shape[1 : each.batch_axes])
        local = math.prod(size / parts(name, mesh, size=size) for name, size in sizes)
        return each.active * experts * local

    widths = {
        path.removeprefix(f'{stack.name}/'): [
            width(each, axes) for axes in groups.matrix_axes(path, each.value.ndim)
        ]
        for path, each in groups.declared.items()
        if each.role is Role.HIDDEN and path.startswith(f'{stack.name}/')
    }
    inputs, outputs = ({path: both[i] for path, both in widths.items()} for i in range(2))
    return inputs, outputs


def memory_limit(device: jax.Device) -> float | None:
    """Returns the bytes of a device that a program may use; None if unknown, as for a CPU."""
    chip = CHIPS.get(device.device_kind)
    if chip is None:
        return None
    if device.platform != 'gpu':
        return chip.memory_bytes
    given = filter(None, map(os.environ.get, GPU_FRACTION_VARIABLES))
    return chip.memory_bytes * float(next(given, GPU_FRACTION))


def with_overrides(config: RunConfig, overrides: Overrides) -> RunConfig:
    """Returns a finalized config with some values changed, finalized again."""
    values = to_json(config)
    for key, value in overrides.items():
        *parents, name = key.split('.')
        branch = values
        for parent in parents:
            branch = branch[parent]
        branch[name] = value
    # `num_steps` is set by now; finalizing must not derive it again from tokens or epochs.
    values['train'] |= {'num_tokens': 0, 'num_epochs': 0.0}
    return finalize(from_json(values, RunConfig), vocab_size=config.model.vocab_size)


def memory_savers(program: Program, config: RunConfig) -> list[list[Overrides]]:
    """Returns families of overrides that need less memory, each sorted from mild to strong.

    Families that change only the speed come first: more micro-batches, remat, both, parameters
    sharded over more devices. A smaller batch, which changes the training, comes last.
    """
    rows, batch_size = parts('batch', program.mesh), config.train.batch_size
    accumulate = _accumulations(batch_size, rows, above=program.micro_batches)
    stronger = REMAT_BY_MEMORY[REMAT_BY_MEMORY.index(config.model.execution.remat) + 1 :]
    rematerialise = [{'model.execution.remat': str(remat)} for remat in stronger]
    full = rematerialise[-1] if rematerialise else {}
    families = [accumulate, rematerialise]
    if full:
        families.append([full | each for each in accumulate])
    over = program.mesh.size // config.mesh.slices
    if program.mesh.shape['fsdp'] < over:
        split = {'mesh.data': config.mesh.slices, 'mesh.fsdp': over}
        others = [axis for axis in ('expert', 'context', 'tensor') if program.mesh.shape[axis] > 1]
        split |= {f'mesh.{axis}': 1 for axis in others}
        if config.eval.batch_size % program.mesh.size:  # it must divide over the devices too
            split['eval.batch_size'] = -(-config.eval.batch_size // over) * over
        spread = [split | each for each in _accumulations(batch_size, program.mesh.size, above=0)]
        families += [spread, [split | full | each for each in spread] if full else []]
    sizes = [batch_size // 2**n // rows * rows for n in range(1, batch_size.bit_length())]
    smaller = [
        full | {'train.batch_size': size, 'train.grad_accumulation': size // rows}
        for size in dict.fromkeys(filter(None, sizes))
    ]
    return [family for family in [*families, smaller] if family]


def _accumulations(batch_size: int, rows: int, *, above: int) -> list[Overrides]:
    """Returns the numbers of micro-batches that give each device whole rows, in rising order."""
    return [
        {'train.grad_accumulation': count}
        for count in range(above + 1, batch_size // rows + 1)
        if batch_size % (count * rows) == 0
    ]


def fitting(
    program: Program, config: RunConfig, family: list[Overrides], *, limit: float
) -> Iterator[tuple[Overrides, RunConfig, Program]]:
    """Yields the members of a family that need at most `limit` bytes by formula, in order."""
    devices = list(program.mesh.devices.flat)
    for overrides in family:
        try:
            changed = with_overrides(config, overrides)
            candidate = make_program(changed, make_mesh(changed.mesh, devices))
        except UserError:  # does not divide over the devices; the next one may
            continue
        if estimate_memory(candidate, changed).total <= limit:
            yield overrides, changed, candidate


def format_overrides(overrides: Overrides) -> str:
    """Formats overrides as on the command line: `--config.train.grad_accumulation=4 …`."""
    return ' '.join(f'--config.{key}={value}' for key, value in overrides.items())


@contextlib.contextmanager
def explain_out_of_memory(program: Program, config: RunConfig) -> Iterator[None]:
    """Turns an out-of-memory error of a device into one line of advice.

    Raises:
        UserError: a computation inside ran out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise UserError(out_of_memory_advice(program, config)) from error


def out_of_memory_advice(program: Program, config: RunConfig) -> str:
    """Returns one line: the memory that a step needs, by formula, and overrides that need less."""
    device = program.mesh.devices.flat[0]
    plan = estimate_memory(program, config)
    limit = memory_limit(device)
    # If the limit is unknown, or the formula says that the step fits: clearly below the estimate.
    target = min(0.8 * plan.total, limit or math.inf)
    mildest = (
        next(fitting(program, config, family, limit=target), None)
        for family in memory_savers(program, config)
    )
    advice = [format_overrides(found[0]) for found in mildest if found]
    size = f' ({limit / GIB:.1f} GiB)' if limit else ''
    return (
        f'out of memory on {device.device_kind}{size}: a step needs about '
        f'{plan.total / GIB:.2f} GiB per device ({plan.describe()}); '
        + ('try ' + ', or '.join(advice[:3]) if advice else 'use more devices or a smaller model')
        + ' (estimated; --mode compile_check --topology=… verifies such changes without a device)'
    )
