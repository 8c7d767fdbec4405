"""One program that trains several members: runs that differ in their numbers only.

Each device has its own members, and devices exchange nothing. The members of one device are
vectorized (`jax.vmap`), or follow one another within the program (`jax.lax.map`), which is faster
on a CPU (benchmarks/README.md).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.parallel.mesh import MEMBER, make_member_mesh
from gpt_jax.train.program import Program
from gpt_jax.train.state import TrainState
from gpt_jax.train.step import (
    Batch,
    Metrics,
    Numbers,
    TrainStep,
    make_train_step,
    make_train_steps,
    stack_batches,
)


class MemberProgram:
    """The steps of several members, of which arrays have a leading axis.

    Where devices do not divide the members, the last member is computed more than once.
    """

    def __init__(
        self,
        program: Program,
        numbers: Sequence[Numbers],
        *,
        streams: Sequence[int] | None = None,
        mesh: Mesh | None = None,
        vectorized: bool | None = None,
    ):
        """Compiles nothing yet.

        Args:
          program: of one member, on one device.
          numbers: of each member, of one tree.
          streams: number of each member's data stream; None: all have the same.
          mesh: has an axis of members; by default of all devices.
          vectorized: whether the members of one device are; None: not on CPUs.
        """
        self._count = count = len(numbers)
        self.mesh = make_member_mesh(count) if mesh is None else mesh
        devices = self.mesh.size
        self._lanes = [min(i, count - 1) for i in range(-(-count // devices) * devices)]
        self._each = len(self._lanes) // devices  # members of one device
        streams = [0] * count if streams is None else streams
        self._streams = None if len(set(streams)) == 1 else [streams[i] for i in self._lanes]
        self._program = program
        backend = self.mesh.devices.flat[0].platform
        self._vectorized = backend != 'cpu' if vectorized is None else vectorized
        self._split = NamedSharding(self.mesh, PartitionSpec(MEMBER))
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        stacked = jax.tree.map(lambda *each: jnp.array(each), *self._lay(numbers))
        self._numbers = jax.device_put(stacked, self._split)
        self.train_step = self._compile(make_train_step(program.step_parts))
        self.train_steps = self._compile(make_train_steps(program.step_parts))

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """Returns the states of all members as one."""
        lanes, devices = self._lay(states), list(self.mesh.devices.flat)

        def join(*leaves: jax.Array) -> jax.Array:
            blocks = [
                jnp.stack(jax.device_put(list(leaves[i * self._each :][: self._each]), device))
                for i, device in enumerate(devices)
            ]
            shape = (len(leaves), *leaves[0].shape)
            return jax.make_array_from_single_device_arrays(shape, self._split, blocks)

        return jax.tree.map(join, *lanes)

    def member(self, states: TrainState, index: int) -> TrainState:
        """Returns the state of one member, on the devices of its own program."""
        device, place = divmod(index, self._each)
        here = self.mesh.devices.flat[device]

        def take(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
            block = next(each.data for each in leaf.addressable_shards if each.device == here)
            return jax.device_put(block[place], like.sharding)

        return jax.tree.map(take, states, self._program.abstract_state)

    def advance(
        self, states: TrainState, calls: Sequence[Sequence[dict[str, np.ndarray]]]
    ) -> tuple[TrainState, list[dict[str, Any]]]:
        """Takes one step per batch of each stream; returns the states and each member's metrics.

        Donates the states.
        """
        step = self.train_step if len(calls[0]) == 1 else self.train_steps
        states, metrics = step(states, self._place(calls), self._numbers)
        return states, [
            {name: _OfMember(values, index) for name, values in metrics.items()}
            for index in range(self._count)
        ]

    def _lay(self, members: Sequence[Any]) -> list[Any]:
        return [members[i] for i in self._lanes]

    def _place(self, calls: Sequence[Sequence[dict[str, np.ndarray]]]) -> Any:
        stacked = [call[0] if len(call) == 1 else stack_batches(call) for call in calls]
        if self._streams is None:
            return jax.device_put(stacked[0], self._whole)
        return jax.device_put(stack_batches([stacked[i] for i in self._streams]), self._split)

    def _compile(self, step: TrainStep) -> Any:
        split = PartitionSpec(MEMBER)
        batch_axis = None if self._streams is None else 0
        if self._vectorized:
            mapped = jax.vmap(step, in_axes=(0, batch_axis, 0))
        else:
            mapped = _one_by_one(step, batch_axis)
        if self.mesh.size > 1:
            mapped = jax.shard_map(
                mapped,
                mesh=self.mesh,
                in_specs=(split, PartitionSpec() if batch_axis is None else split, split),
                out_specs=split,
                check_vma=False,
            )
        return functools.partial(
            jax.jit,
            donate_argnums=0,
            out_shardings=self._split,
            compiler_options=self._program.compiler_options,
        )(mapped)


def _one_by_one(step: TrainStep, batch_axis: int | None) -> TrainStep:
    """Returns a function that takes the step of one member after another."""

    def steps(states: TrainState, batch: Batch, numbers: Numbers) -> tuple[TrainState, Metrics]:
        if batch_axis is None:
            return jax.lax.map(lambda each: step(each[0], batch, each[1]), (states, numbers))
        return jax.lax.map(lambda each: step(*each), (states, batch, numbers))

    return steps


class _OfMember:
    """The values of one member in an array of all members, read when they are needed."""

    def __init__(self, values: jax.Array, index: int):
        self._values, self._index = values, index

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(np.asarray(self._values)[self._index], dtype=dtype, copy=copy)
