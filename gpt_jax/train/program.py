"""The jitted program of a run: the only place that compiles the training step.

A Program is built from shapes alone, with no data and no device memory, so the trainer, the
tests and ahead-of-time checks share it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from gpt_jax.config import LossKernel, RunConfig
from gpt_jax.errors import UserError
from gpt_jax.model.attention_ops import resolve_kernel
from gpt_jax.model.config import ModelConfig, ScanLayers
from gpt_jax.model.gpt import GPT, init_params
from gpt_jax.optim import make_optimizer
from gpt_jax.optim.schedule import make_schedule
from gpt_jax.optim.state import follow_parameters
from gpt_jax.parallel.rules import RULES, batch_sharding, parameter_shardings, replicated
from gpt_jax.train.loss import LossSums
from gpt_jax.train.loss_kernels import resolve_loss_kernel
from gpt_jax.train.state import TrainState, make_state
from gpt_jax.train.step import Batch, Metrics, StepParts, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A run's compiled functions and what they work on."""

    mesh: Mesh
    model: GPT
    loss_kernel: LossKernel
    abstract_state: TrainState  # ShapeDtypeStructs with shardings
    init: Callable[[jax.Array], TrainState]  # from a PRNG key
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]  # donates the state
    eval_step: Callable[[Any, Batch], LossSums]  # from params

    def place(self, batch: dict[str, np.ndarray]) -> Batch:
        """Moves this process's rows of a batch onto its devices."""
        sharding = batch_sharding(self.mesh)
        processes = jax.process_count()

        def put(rows: np.ndarray) -> jax.Array:
            shape = (rows.shape[0] * processes, *rows.shape[1:])
            return jax.make_array_from_process_local_data(sharding, rows, shape)

        return {name: put(rows) for name, rows in batch.items()}


def make_program(config: RunConfig, mesh: Mesh) -> Program:
    """Builds the program of a finalized config; compiles nothing yet.

    Raises:
        UserError: the batch does not divide over the mesh, or a requested kernel cannot run.
    """
    backend = mesh.devices.flat[0].platform
    _check_batches(config, mesh)
    model = GPT(
        config.model,
        kernel=resolve_kernel(config.model, backend=backend, segments=config.data.segment_ids),
        scan=use_scan(config.model, backend=backend),
    )
    loss_kernel = resolve_loss_kernel(
        config.train.loss_kernel,
        backend=backend,
        vocab_parts=mesh.shape.get(RULES['vocab'], 1),
    )
    schedule = make_schedule(
        config.schedule,
        learning_rate=config.optimizer.learning_rate,
        num_steps=config.train.num_steps,
    )
    optimizer = make_optimizer(config.optimizer, config.schedule, num_steps=config.train.num_steps)
    parts = StepParts(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=config.optimizer.clip_norm,
        train=config.train,
        seed=config.seed,
        loss_kernel=loss_kernel,
    )

    def init_state(key: jax.Array) -> TrainState:
        params = nn.unbox(init_params(config.model, key))
        return make_state(params, optimizer, ema_decay=config.train.ema_decay)

    shardings = _state_shardings(config, mesh, init_state)
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init_state, jax.random.key(0)),
        shardings,
    )
    rows, whole = batch_sharding(mesh), replicated(mesh)
    return Program(
        mesh=mesh,
        model=model,
        loss_kernel=loss_kernel,
        abstract_state=abstract_state,
        init=_on_mesh(mesh, jax.jit(init_state, out_shardings=shardings)),
        train_step=_on_mesh(
            mesh,
            jax.jit(
                make_train_step(parts),
                in_shardings=(shardings, rows),
                out_shardings=(shardings, whole),
                donate_argnums=0,
            ),
        ),
        eval_step=_on_mesh(
            mesh,
            jax.jit(
                make_eval_step(parts),
                in_shardings=(shardings.params, rows),
                out_shardings=whole,
            ),
        ),
    )


def use_scan(config: ModelConfig, *, backend: str) -> bool:
    """Whether layers run as a scan: on a TPU it keeps compilation bearable, elsewhere it costs."""
    if config.scan_layers != ScanLayers.AUTO:
        return config.scan_layers == ScanLayers.ON
    whole_periods = config.num_layers % max(1, len(config.window_pattern)) == 0
    return backend == 'tpu' and whole_periods


def _check_batches(config: RunConfig, mesh: Mesh) -> None:
    """Refuses batches that do not divide over the devices."""
    devices = mesh.shape['data']
    micro = config.train.batch_size // config.train.grad_accumulation
    sizes = {
        'config.train.batch_size / config.train.grad_accumulation': micro,
        'config.eval.batch_size': config.eval.batch_size,
    }
    for name, size in sizes.items():
        if size % devices:
            raise UserError(
                f'{name} = {size} is not divisible by the {devices} devices of the data axis; '
                f'change it, or use fewer devices with config.mesh.data'
            )


def _state_shardings(
    config: RunConfig,
    mesh: Mesh,
    init_state: Callable[[jax.Array], TrainState],
) -> TrainState:
    """The sharding of every leaf of the state: moments follow their parameters."""
    key = jax.random.key(0)
    boxed = jax.eval_shape(functools.partial(init_params, config.model), key)
    params = parameter_shardings(boxed, mesh)
    state = jax.eval_shape(init_state, key)
    whole = replicated(mesh)

    opt_state = follow_parameters(state.opt_state, state.params, params, default=whole)
    ema = params if config.train.ema_decay else None
    return TrainState(
        step=whole, params=params, opt_state=opt_state, ema=ema, skipped=whole, bad_steps=whole
    )


def _on_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Runs `function` where logical constraints mean something: flax ignores them elsewhere."""

    @functools.wraps(function)
    def call(*args):
        with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
            return function(*args)

    call.lower = function.lower
    return call
