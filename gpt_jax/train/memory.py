"""How much memory of a device a training step needs, by formula, and what would make it need less.

The formula ranks what to try; `gpt_jax.compile_check` has XLA confirm it, and a run that dies of
memory gets the same advice.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import from_json, to_json
from gpt_jax.errors import UserError
from gpt_jax.model.config import AttentionKernel, MLPKind, Remat
from gpt_jax.model.remat import DOTS, REMAT_KEEPS
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import parts
from gpt_jax.telemetry.chips import CHIPS, GIB
from gpt_jax.train.loss import chunk_count
from gpt_jax.train.program import Program, make_program

Overrides = dict[str, Any]  # 'train.grad_accumulation' -> value
# From the mildest: what a layer keeps less of costs more to compute again.
REMAT_BY_MEMORY = (
    Remat.NONE,
    Remat.DOTS_AND_ATTENTION,
    Remat.DOTS,
    Remat.ATTENTION,
    Remat.FULL,
)
# Trees of gradients that XLA holds to add up micro-batches: the sum, what it gets, copies of both
# (GPT-2 1558M on a TPU v5p; without micro-batches it is one).
ACCUMULATED_GRADIENTS = 4
OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'  # how every backend of XLA begins such an error
GPU_FRACTION = 0.75  # of a GPU's memory that JAX takes unless one of these variables says
GPU_FRACTION_VARIABLES = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on one device at the fullest moment of a step."""

    parameters: float
    optimizer_state: float  # moments, moving average, counters
    gradients: float
    logits: float  # of one chunk of the loss, and their gradient
    activations: float  # of the layers for the backward pass; cast weights, the loss's table

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    def describe(self) -> str:
        """`parameters 2.9, optimizer state 5.8, … GiB`."""
        parts = [
            f'{name.replace("_", " ")} {value / GIB:.2f}'
            for name, value in dataclasses.asdict(self).items()
        ]
        return ', '.join(parts) + ' GiB'


def bytes_per_device(tree: Any) -> int:
    """What one device holds of a tree of (abstract) arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def estimate_memory(program: Program, config: RunConfig) -> MemoryPlan:
    """The formula: state by its shardings, the rest by what a layer keeps (`config.model.remat`).

    The constants of a layer without remat are those that XLA needs for GPT-2 124M on a TPU v5e
    (the table in `model/remat.py`).
    """
    model, mesh = config.model, program.mesh
    trained = bytes_per_device(program.abstract_state.params)
    parameters = trained + bytes_per_device(program.abstract_state.base)
    rows = math.ceil(config.train.batch_size / program.micro_batches / parts('batch', mesh))
    length = model.max_seq_len // parts('length', mesh)
    vocab = model.padded_vocab_size // parts('vocab', mesh, size=model.padded_vocab_size)
    itemsize = jnp.dtype(model.compute_dtype).itemsize
    logits = rows * length * vocab
    chunk = logits / chunk_count(length, 4 * logits, program.loss_chunk_bytes)
    table = vocab * model.d_model * (4 + itemsize)  # the output table and its gradient, whole
    cast = parameters * itemsize / 4 if itemsize < 4 else 0  # the weights in the compute dtype
    kept = model.num_layers * _kept_bytes(program, config, model.remat)
    if model.remat != Remat.NONE:  # one layer at a time is computed again, with all that it needs
        kept += _kept_bytes(program, config, Remat.NONE)
    return MemoryPlan(
        parameters=parameters,
        optimizer_state=bytes_per_device(program.abstract_state) - parameters,
        gradients=trained * (1 if program.micro_batches == 1 else ACCUMULATED_GRADIENTS),
        logits=chunk * (4 + itemsize),
        activations=rows * length * kept + table + cast,
    )


def _kept_bytes(program: Program, config: RunConfig, remat: Remat) -> float:
    """Bytes a token that a layer keeps for its backward pass."""
    model, mesh = config.model, program.mesh
    itemsize = jnp.dtype(model.compute_dtype).itemsize
    ff = model.d_ff / parts('mlp', mesh, size=model.d_ff)
    local_heads = model.num_heads / parts('heads', mesh, size=model.num_heads)
    heads = local_heads * model.head_dim
    kv_heads = model.head_dim * (
        model.num_kv_heads / parts('kv_heads', mesh, size=model.num_kv_heads)
    )
    gated = model.mlp in (MLPKind.SWIGLU, MLPKind.GEGLU)
    widths = {
        'query': heads,
        'key': kv_heads,
        'value': kv_heads,
        'attention': heads,
        'output': model.d_model,
        'up': ff,
        'gate': ff if gated else 0,
        'down': model.d_model,
    }
    names = (*DOTS, 'attention') if remat == Remat.NONE else REMAT_KEEPS[remat]
    kept = itemsize * (model.d_model + sum(widths[name] for name in names))
    if remat == Remat.NONE:
        kept += 4 * (7 * model.d_model + 4 * ff)  # norms and activation functions, in float32
        if program.model.kernels.attention in (AttentionKernel.XLA, AttentionKernel.BLOCKED):
            kept += (4 + itemsize) * local_heads * model.max_seq_len  # scores and their softmax
    return kept


def memory_limit(device: jax.Device) -> float | None:
    """Bytes that a program may use of a device; None where it is unknown, as for a CPU."""
    chip = CHIPS.get(device.device_kind)
    if chip is None:
        return None
    if device.platform != 'gpu':
        return chip.memory_bytes
    given = filter(None, map(os.environ.get, GPU_FRACTION_VARIABLES))
    return chip.memory_bytes * float(next(given, GPU_FRACTION))


def with_overrides(config: RunConfig, overrides: Overrides) -> RunConfig:
    """A finalized config with some values changed, finalized again."""
    values = to_json(config)
    for key, value in overrides.items():
        *parents, name = key.split('.')
        branch = values
        for parent in parents:
            branch = branch[parent]
        branch[name] = value
    # The length of the run is known by now; tokens or epochs would be counted again.
    values['train'] |= {'num_tokens': 0, 'num_epochs': 0.0}
    return finalize(from_json(values, RunConfig), vocab_size=config.model.vocab_size)


def memory_savers(program: Program, config: RunConfig) -> list[list[Overrides]]:
    """Families of overrides that need less memory, each from its mildest member to its last.

    First those that change only speed: more micro-batches, remat, both, parameters split over
    more devices; then a smaller batch, which is another run.
    """
    rows, batch_size = parts('batch', program.mesh), config.train.batch_size
    accumulate = _accumulations(batch_size, rows, above=program.micro_batches)
    stronger = REMAT_BY_MEMORY[REMAT_BY_MEMORY.index(config.model.remat) + 1 :]
    rematerialise = [{'model.remat': str(remat)} for remat in stronger]
    full = rematerialise[-1] if rematerialise else {}
    families = [accumulate, rematerialise]
    if full:
        families.append([full | each for each in accumulate])
    over = program.mesh.size // config.mesh.slices
    if program.mesh.shape['fsdp'] < over:
        split = {'mesh.data': config.mesh.slices, 'mesh.fsdp': over}
        split |= {
            f'mesh.{axis}': 1 for axis in ('context', 'tensor') if program.mesh.shape[axis] > 1
        }
        if config.eval.batch_size % program.mesh.size:  # every device takes whole rows of it too
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
    """The numbers of micro-batches that leave every device whole rows, in growing order."""
    return [
        {'train.grad_accumulation': count}
        for count in range(above + 1, batch_size // rows + 1)
        if batch_size % (count * rows) == 0
    ]


def fitting(
    program: Program, config: RunConfig, family: list[Overrides], *, limit: float
) -> Iterator[tuple[Overrides, RunConfig, Program]]:
    """The members of a family that the formula puts at or below `limit` bytes, in their order."""
    devices = list(program.mesh.devices.flat)
    for overrides in family:
        try:
            changed = with_overrides(config, overrides)
            candidate = make_program(changed, make_mesh(changed.mesh, devices))
        except UserError:  # it does not divide; the next may
            continue
        if estimate_memory(candidate, changed).total <= limit:
            yield overrides, changed, candidate


def format_overrides(overrides: Overrides) -> str:
    """As they are typed: `--config.train.grad_accumulation=4 …`."""
    return ' '.join(f'--config.{key}={value}' for key, value in overrides.items())


@contextlib.contextmanager
def explain_out_of_memory(program: Program, config: RunConfig) -> Iterator[None]:
    """Turns an out-of-memory error of a device into one line that says what to change.

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
    """One line: what a step needs, by formula, and the overrides that would need less."""
    device = program.mesh.devices.flat[0]
    plan = estimate_memory(program, config)
    limit = memory_limit(device)
    # Where the size is unknown, or the formula thought that the step fits: clearly below it.
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
