"""The data-parallel program in its classical form: `jax.pmap`, one replica a device.

Each replica holds the whole state and takes the step with rows of its own; the sums over the
batch, gradients among them, are added up by hand (`lax.psum`). The maths is that of `step.py`, so
losses are those of the jitted program; dropout masks are drawn for the whole batch
(`model.linear.dropout`). State and metrics go in and come out as one copy on every device, as the
jitted program has them, so that checkpoints are interchangeable.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from gpt_jax.errors import UserError
from gpt_jax.parallel.rules import replicated
from gpt_jax.train.likelihoods import make_score_step
from gpt_jax.train.state import TrainState
from gpt_jax.train.step import Batch, Metrics, StepParts, make_eval_step, make_train_step

AXIS = 'batch'  # what `kernels.shard_map.batch_part` looks for


def make_pmap_functions(parts: StepParts, mesh: Mesh, shardings: TrainState) -> dict[str, Any]:
    """The fields of a `Program` in which this one differs from the jitted one.

    Its functions take batches with an axis of replicas: `[N, B / N, ...]`, stacked ones
    `[steps, N, B / N, ...]`. `shardings` are those of the jitted program's state.

    Raises:
        UserError: the mesh or the config asks for what only the jitted program can do.
    """
    _check(parts, mesh)
    parts = dataclasses.replace(
        parts,
        total=functools.partial(jax.lax.psum, axis_name=AXIS),
        gather=functools.partial(jax.lax.all_gather, axis_name=AXIS, tiled=True),
    )
    train_step = make_train_step(parts)

    def train_steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(train_step, state, batches)

    whole = replicated(mesh)
    replicate = functools.partial(_replicate, devices=list(mesh.devices.flat))
    step = functools.partial(replicate, out_shardings=(shardings, whole), donate=True)
    return {
        'train_step': step(train_step, batch_axis=0),
        'train_steps': step(train_steps, batch_axis=1),
        'eval_step': replicate(
            make_eval_step(parts), batch_axis=0, out_shardings=whole, donate=False
        ),
        'score_step': replicate(
            make_score_step(parts), batch_axis=0, out_shardings=whole, donate=False
        ),
        'compiler_options': {},  # pmap takes none
        'replicas': mesh.size,
    }


def _check(parts: StepParts, mesh: Mesh) -> None:
    """Refuses what needs a partitioner or the compiler's options."""
    for axis in ('fsdp', 'tensor', 'context'):
        if mesh.shape[axis] > 1:
            raise UserError(
                f'config.mesh.program=pmap splits the batch alone: set config.mesh.{axis}=1 '
                f'(it is {mesh.shape[axis]}) or config.mesh.program=jit'
            )
    if parts.train.deterministic and mesh.devices.flat[0].platform == 'gpu':
        raise UserError(
            'config.train.deterministic is on, which needs compiler options, and '
            'config.mesh.program=pmap takes none: set config.mesh.program=jit'
        )


def _replicate(
    function: Callable,
    *,
    devices: Sequence[jax.Device],
    batch_axis: int,
    out_shardings: Any,
    donate: bool,
) -> Callable:
    """`function(whole, batch)` on every device: the same first argument, its own rows."""
    mapped = jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(None, batch_axis),
        out_axes=None,
        devices=devices,
        axis_size=len(devices),
        donate_argnums=0 if donate else (),
    )

    @functools.wraps(mapped)
    def call(*args):
        out = mapped(*args)
        return jax.tree.map(_relabel, out, jax.tree.broadcast(out_shardings, out))

    call.lower = mapped.lower
    return call


def _relabel(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """`x`, a copy on each of this process's devices, as the array of the whole mesh that it is.

    pmap has a mesh of its own, and of several processes returns to each what it can see.
    """
    copies = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)
