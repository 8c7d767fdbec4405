"""The jitted program of a run: the only place that compiles the training step.

A Program is built from shapes alone, without data and without device memory. So the trainer, the
tests and ahead-of-time checks share it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from gpt_jax.config import LossKernel, RunConfig, call_cadences
from gpt_jax.errors import UserError
from gpt_jax.kernels.attention import choose_kernel
from gpt_jax.kernels.experts import choose_expert_kernel
from gpt_jax.kernels.loss import choose_loss_kernel
from gpt_jax.kernels.norm import choose_norm_kernel
from gpt_jax.model.config import (
    AttentionKernel,
    ExpertKernel,
    Kernels,
    MatmulPrecision,
    ModelConfig,
    NormKernel,
    ScanLayers,
)
from gpt_jax.model.gpt import GPT, abstract_params
from gpt_jax.optim.state import follow_parameters
from gpt_jax.parallel.compiler_options import Option, compiler_options
from gpt_jax.parallel.mesh import ProgramKind
from gpt_jax.parallel.rules import (
    batch_sharding,
    on_mesh,
    parameter_shardings,
    parts,
    process_rows,
    replicated,
    with_shardings,
)
from gpt_jax.train.flops import train_flops_per_token
from gpt_jax.train.host_memory import check_host_memory
from gpt_jax.train.likelihoods import RowScores, make_score_step, make_token_step
from gpt_jax.train.loss import LossSums
from gpt_jax.train.pmap_program import make_pmap_functions
from gpt_jax.train.state import TrainState, init_state, plan_beginning, step_numbers
from gpt_jax.train.step import (
    Batch,
    Metrics,
    Numbers,
    StepParts,
    TrainStep,
    make_eval_step,
    make_train_step,
    make_train_steps,
    stack_batches,
)

# FLOPs per call at most, for the choice of `train.steps_per_call`. Backends without an entry take
# one step per call.
FLOPS_PER_CALL = {'cpu': 2e11}  # about half a second
MAX_STEPS_PER_CALL = 10
# Float32 logits that the loss holds at once: few fit a CPU's caches, a GPU needs large products.
LOSS_CHUNK_BYTES = {'cpu': 2**27, 'gpu': 2**30, 'tpu': 2**27}
# Limit per device for the widest activation of a micro-batch. Backends without an entry do not
# split the batch.
ACTIVATION_BYTES = {'cpu': 2**22}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The compiled functions of a run, with their mesh, model and abstract state."""

    mesh: Mesh
    model: GPT
    loss_kernel: LossKernel
    loss_chunk_bytes: int  # of float32 logits that the loss holds at once
    abstract_state: TrainState  # ShapeDtypeStructs with shardings
    abstract_params: Any  # the same for all of the model's parameters
    init: Callable[[jax.Array], TrainState]  # from a PRNG key
    begin: Callable[[Any, jax.Array], TrainState]  # from given parameters and a key; donates them
    join: Callable[[Any, Any], Any]  # `state.params` (or their average) and `state.base` -> params
    train_step: TrainStep  # donates the state
    train_steps: TrainStep  # of stacked batches
    numbers: Numbers  # of the config; another run's train it with the same compiled steps
    step_parts: StepParts  # of which the steps are made
    compiler_options: dict[str, Option]  # of the steps
    micro_batches: int  # per step
    steps_per_call: int  # batches that `train_steps` takes per call
    eval_step: Callable[[Any, Batch], LossSums]  # from params
    score_step: Callable[[Any, Batch], RowScores]  # from params, and batches with a loss_mask
    token_step: Callable[[Any, Batch], jax.Array]  # from params: the loss of each target
    replicas: int = 0  # of pmap, each with its own rows; 0: arrays span all devices (jit)

    @functools.cached_property
    def row_share(self) -> tuple[int, int]:
        """The share of each batch's rows that this process reads: `(index, count)`."""
        return process_rows(self.mesh)

    def place(self, batch: dict[str, np.ndarray]) -> Batch:
        """Moves this process's rows of a batch onto its devices."""
        return self._place(batch, rows_axis=0)

    def advance(
        self, state: TrainState, batches: Sequence[dict[str, np.ndarray]]
    ) -> tuple[TrainState, Metrics]:
        """Takes one step per batch in a single device call; donates the state.

        Metrics are scalars for one batch, and vectors with one entry per step for several.
        """
        function, placed = self._call(batches)
        return function(state, placed, self.numbers)

    def lower(
        self, state: TrainState, batches: Sequence[dict[str, np.ndarray]]
    ) -> jax.stages.Lowered:
        """Lowers the program of `advance` for this number of batches; the state may be abstract."""
        function, placed = self._call(batches)
        return function.lower(state, placed, self.numbers)

    def of_member(self, config: RunConfig) -> 'Program':
        """Returns the program of a config that differs in its numbers only; shares the steps."""
        numbers = step_numbers(config)
        if config.model == self.model.config:
            return dataclasses.replace(self, numbers=numbers)
        init = make_program(config, self.mesh).init  # its initial scale is another
        return dataclasses.replace(self, numbers=numbers, init=init)

    def call_length(self, step: int, num_steps: int) -> int:
        """Returns the number of steps of the next call, after `step` of `num_steps`.

        Calls begin at multiples of `steps_per_call`; remaining steps are taken one by one.
        """
        aligned = step % self.steps_per_call == 0 and step + self.steps_per_call <= num_steps
        return self.steps_per_call if aligned else 1

    def _call(self, batches: Sequence[dict[str, np.ndarray]]) -> tuple[Callable, Batch]:
        if len(batches) == 1:
            return self.train_step, self.place(batches[0])
        return self.train_steps, self._place(stack_batches(batches), rows_axis=1)

    def _place(self, batch: dict[str, np.ndarray], *, rows_axis: int) -> Batch:
        sharding = batch_sharding(self.mesh, rows_axis=rows_axis)
        _, processes = self.row_share

        def put(rows: np.ndarray) -> jax.Array:
            shape = list(rows.shape)
            if self.replicas:
                shape[rows_axis : rows_axis + 1] = (self.replicas // processes, -1)
                rows = rows.reshape(shape)
                shape = list(rows.shape)
            shape[rows_axis] *= processes
            return jax.make_array_from_process_local_data(sharding, rows, tuple(shape))

        return {name: put(rows) for name, rows in batch.items()}


def make_program(config: RunConfig, mesh: Mesh, *, traced: bool = False) -> Program:
    """Builds the program of a finalized config; compiles nothing yet.

    `traced` compiles the steps so that a profile shows the operation of each kernel.

    Raises:
        UserError: the batch does not divide over the mesh, or a requested kernel cannot run.
    """
    backend = mesh.devices.flat[0].platform
    devices = parts('batch', mesh)
    micro_batches = choose_micro_batches(config, backend=backend, devices=devices)
    _check_divisible(config, mesh, micro_batches=micro_batches)
    model = GPT(
        config.model,
        kernels=Kernels(
            AttentionKernel(
                choose_kernel(
                    dataclasses.replace(
                        config.model, head_dim=config.model.attention.score_width(config.model)
                    ),
                    backend=backend,
                    segments=config.data.segment_ids,
                    context=parts('length', mesh),
                )
            ),
            NormKernel(choose_norm_kernel(config.model.execution.norm_kernel, backend=backend)),
            ExpertKernel(
                choose_expert_kernel(config.model.execution.expert_kernel, backend=backend)
            ),
        ),
        scan=use_scan(config.model, backend=backend),
        # Merging a sharded sequence with the batch would gather it.
        flat=parts('length', mesh) == 1,
    )
    loss_kernel = choose_loss_kernel(
        config.train.loss_kernel,
        backend=backend,
        vocab_parts=parts('vocab', mesh),
    )
    loss_chunk_bytes = config.train.loss_chunk_bytes or LOSS_CHUNK_BYTES[backend]
    beginning = plan_beginning(config)
    step_parts = StepParts(
        model=model,
        optimizer=beginning.optimizer,
        schedule=beginning.schedule,
        train=config.train,
        micro_batches=micro_batches,
        loss_kernel=loss_kernel,
        loss_chunk_bytes=loss_chunk_bytes,
        trainable=beginning.trainable,
    )
    boxed, state = abstract_params(config.model), beginning.state
    init = functools.partial(init_state, model=config.model, begin=beginning.begin)
    if backend == 'cpu':
        check_host_memory(config, state)
    shardings = _state_shardings(mesh, beginning.boxed_parts, state)
    params_shardings = parameter_shardings(boxed, mesh)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    options = compiler_options(
        backend,
        deterministic=config.train.deterministic,
        bfloat16_products=config.model.precision.matmul == MatmulPrecision.BFLOAT16,
        traced=traced,
    )
    once = compiler_options(backend, deterministic=config.train.deterministic, once=True)
    compile_step = functools.partial(
        _jit, mesh, outputs=(shardings, whole), donate=True, options=options
    )
    compile_evaluation = functools.partial(
        _jit, mesh, inputs=(params_shardings, rows), outputs=whole, options=options
    )
    join = step_parts.trainable.join
    program = Program(
        mesh=mesh,
        model=model,
        loss_kernel=loss_kernel,
        loss_chunk_bytes=loss_chunk_bytes,
        abstract_state=with_shardings(state, shardings),
        abstract_params=with_shardings(nn.unbox(boxed), params_shardings),
        init=_jit(mesh, init, outputs=shardings, options=once),
        begin=_jit(mesh, beginning.begin, outputs=shardings, donate=True),
        join=join if step_parts.trainable.is_all else _jit(mesh, join, outputs=params_shardings),
        train_step=compile_step(make_train_step(step_parts), inputs=(shardings, rows, whole)),
        train_steps=compile_step(
            make_train_steps(step_parts),
            inputs=(shardings, batch_sharding(mesh, rows_axis=1), whole),
        ),
        numbers=beginning.numbers,
        step_parts=step_parts,
        compiler_options=options,
        micro_batches=micro_batches,
        steps_per_call=choose_steps_per_call(config, backend=backend),
        eval_step=compile_evaluation(make_eval_step(step_parts)),
        score_step=compile_evaluation(make_score_step(step_parts)),
        token_step=compile_evaluation(make_token_step(step_parts)),
    )
    if config.mesh.program == ProgramKind.PMAP:
        return dataclasses.replace(program, **make_pmap_functions(step_parts, mesh, shardings))
    return program


def use_scan(config: ModelConfig, *, backend: str) -> bool:
    """Returns whether layers run as a scan: faster to compile on TPUs, but slower elsewhere."""
    if config.execution.scan_layers != ScanLayers.AUTO:
        return config.execution.scan_layers == ScanLayers.ON
    return backend == 'tpu' and config.num_layers % config.period == 0


def choose_steps_per_call(config: RunConfig, *, backend: str) -> int:
    """Returns the number of steps per call: the config's, or the fastest on the backend.

    On a CPU each call causes page faults, because memory is freed after it. So a small model takes
    up to ten steps per call, if the call stays short enough to react to a stop signal.
    """
    if config.train.steps_per_call:
        return config.train.steps_per_call
    tokens = config.train.batch_size * config.model.max_seq_len
    flops = tokens * train_flops_per_token(config.model, length=config.model.max_seq_len)
    limit = min(MAX_STEPS_PER_CALL, int(FLOPS_PER_CALL.get(backend, 0) / flops))
    together = math.gcd(*call_cadences(config).values())
    return max(k for k in range(1, max(1, limit) + 1) if together % k == 0)


def choose_micro_batches(config: RunConfig, *, backend: str, devices: int) -> int:
    """Returns the number of micro-batches per step: the config's, or one that fits the caches.

    On a CPU, activations larger than the caches cost more than the split. On other backends a
    split is never faster.
    """
    train, model = config.train, config.model
    limit = ACTIVATION_BYTES.get(backend)
    width = max(model.d_model, *(mlp.width(model) for mlp in model.mlps))
    if train.grad_accumulation or limit is None:
        return train.grad_accumulation or 1
    rows = devices * max(1, limit // (4 * model.max_seq_len * width))
    for count in range(1, train.batch_size + 1):
        size, rest = divmod(train.batch_size, count)
        if rest == 0 and size <= rows and size % devices == 0:
            return count
    return 1


def _check_divisible(config: RunConfig, mesh: Mesh, *, micro_batches: int) -> None:
    """Rejects batches and sequences that do not divide over the devices."""
    devices, lengths = parts('batch', mesh), parts('length', mesh)
    if config.model.max_seq_len % lengths:
        raise UserError(
            f'config.model.max_seq_len={config.model.max_seq_len} is not divisible by '
            f'config.mesh.context={lengths}; change one of them'
        )
    sizes = {
        'config.train.batch_size / config.train.grad_accumulation': (
            config.train.batch_size // micro_batches
        ),
        'config.eval.batch_size': config.eval.batch_size,
    }
    for name, size in sizes.items():
        if size % devices:
            raise UserError(
                f'{name} = {size} is not divisible by the {devices} devices of the data, fsdp '
                f'and expert axes; change it, or use fewer devices with config.mesh.data'
            )


def _state_shardings(mesh: Mesh, boxed_parts: tuple[Any, Any], state: TrainState) -> TrainState:
    """Returns the sharding of each leaf of the state; moments are sharded like their parameters."""
    params, base = (parameter_shardings(part, mesh) for part in boxed_parts)
    whole = replicated(mesh)
    return TrainState(
        step=whole,
        params=params,
        opt_state=follow_parameters(state.opt_state, state.params, params, default=whole),
        ema=None if state.ema is None else params,
        skipped=whole,
        bad_steps=whole,
        base=base,
    )


def _jit(
    mesh: Mesh,
    function: Callable,
    *,
    outputs: Any,
    inputs: Any = None,
    donate: bool = False,
    options: dict[str, Option] | None = None,
) -> Callable:
    """Jits a function for the mesh; `inputs` and `outputs` are shardings.

    `donate` gives away the first argument. `inputs=None` takes the arguments' own shardings. A call
    runs the same program that `lower(...)` compiles ahead of time.
    """
    jitted = jax.jit(
        function,
        **({} if inputs is None else {'in_shardings': inputs}),
        out_shardings=outputs,
        donate_argnums=0 if donate else (),
        compiler_options=options,
    )

    def within(inner: Callable) -> Callable:
        @functools.wraps(inner)
        def call(*args):
            with on_mesh(mesh):
                return inner(*args)

        return call

    call = within(jitted)
    call.lower = within(jitted.lower)
    return call
