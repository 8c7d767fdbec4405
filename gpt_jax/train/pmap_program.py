"""The data-parallel program with `jax.pmap`, one replica per device.

Each replica holds the whole state and computes the step for its own rows. Sums over the batch,
gradients included, are all-reduced explicitly (`lax.psum`). The maths is that of `step.py`, so the
losses equal those of the jitted program. Dropout masks are drawn for the whole batch
(`kernels.dropout`). State and metrics are replicated arrays, as in the jitted program, so that
checkpoints are interchangeable.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from gpt_jax.errors import UserError
from gpt_jax.parallel.rules import replicated
from gpt_jax.train.likelihoods import make_score_step, make_token_step
from gpt_jax.train.state import TrainState
from gpt_jax.train.step import StepParts, make_eval_step, make_train_step, make_train_steps

AXIS = 'batch'  # the name that `kernels.shard_map.batch_part` looks for


def make_pmap_functions(parts: StepParts, mesh: Mesh, shardings: TrainState) -> dict[str, Any]:
    """Returns the fields of a `Program` that differ from those of the jitted program.

    The functions take batches with an axis of replicas: `[N, B / N, ...]`, or stacked
    `[steps, N, B / N, ...]`. `shardings` are those of the jitted program's state.

    Raises:
        UserError: the mesh or the config needs the jitted program.
    """
    _check(parts, mesh)
    parts = dataclasses.replace(
        parts,
        total=functools.partial(jax.lax.psum, axis_name=AXIS),
        gather=functools.partial(jax.lax.all_gather, axis_name=AXIS, tiled=True),
    )
    whole = replicated(mesh)
    replicate = functools.partial(_replicate, devices=list(mesh.devices.flat))
    step = functools.partial(replicate, arguments=3, out_shardings=(shardings, whole), donate=True)
    measure = functools.partial(
        replicate, arguments=2, batch_axis=0, out_shardings=whole, donate=False
    )
    return {
        'train_step': step(make_train_step(parts), batch_axis=0),
        'train_steps': step(make_train_steps(parts), batch_axis=1),
        'eval_step': measure(make_eval_step(parts)),
        'score_step': measure(make_score_step(parts)),
        'token_step': measure(make_token_step(parts)),
        'compiler_options': {},  # pmap does not accept any
        'replicas': mesh.size,
    }


def _check(parts: StepParts, mesh: Mesh) -> None:
    """Rejects meshes that need a partitioner, and configs that need compiler options."""
    for axis in ('fsdp', 'expert', 'tensor', 'context'):
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
    arguments: int,
    out_shardings: Any,
    donate: bool,
) -> Callable:
    """Maps `function(whole, batch, *numbers)`: each device gets its own rows, else the same."""
    mapped = jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(None, batch_axis, None)[:arguments],
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
    """Returns `x`, which has a copy on each local device, as a replicated array of the whole mesh.

    pmap uses its own mesh, and returns to each of several processes only its local copies.
    """
    copies = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)
