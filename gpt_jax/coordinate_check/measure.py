"""Training of models of several widths, and the scales of their activations."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import RunConfig
from gpt_jax.config_tree import freeze, from_json, to_json
from gpt_jax.inspector.forward import forward
from gpt_jax.inspector.points import points_in
from gpt_jax.kernels.scores import MASKED
from gpt_jax.model.config import ModelConfig, Parametrization, finalize_model
from gpt_jax.model.gpt import GPT
from gpt_jax.model.parametrization import resize, wider_widths
from gpt_jax.optim.schedule import ScheduleConfig, ScheduleKind
from gpt_jax.train.state import TrainState, init_state, plan_beginning
from gpt_jax.train.step import StepParts, make_train_step, stack_batches

# Those of layers are means over the layers.
POINTS = (
    'embedding',
    'attention.scores',
    'attention_output',
    'mlp_output',
    'residual_after',
    'logits',
)
Batches = Sequence[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scales:
    """Mean absolute values of points of models of several widths, before each step."""

    parametrization: Parametrization
    widths: tuple[int, ...]  # d_model
    points: tuple[str, ...]
    values: np.ndarray  # [width, step, point]
    losses: np.ndarray  # [width, step], of the batch of each step

    @property
    def slopes(self) -> np.ndarray:
        """Slopes of the logarithms of the values against that of the width, `[step, point]`."""
        x = np.log(np.array(self.widths))
        x -= x.mean()
        return np.einsum('w,wsp->sp', x, np.log(self.values)) / np.sum(x**2)


def widen(config: RunConfig, factor: int, parametrization: Parametrization) -> RunConfig:
    """Returns the finalized config of a run with a model `factor` times as wide as its base.

    The learning rate is at its peak from the first step on.
    """
    base = dataclasses.replace(config.model, parametrization=Parametrization.MUP)
    widths = wider_widths(base, factor)
    model = dataclasses.replace(resize(config.model, widths), parametrization=parametrization)
    model = from_json(to_json(model), ModelConfig)  # a copy that may be changed
    finalize_model(model)
    schedule = ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=0)
    return freeze(dataclasses.replace(config, model=freeze(model), schedule=schedule))


def measure(
    config: RunConfig,
    parametrization: Parametrization,
    batches: Batches,
    *,
    factors: Sequence[int],
    seeds: int = 1,
    done: Callable[[str], Any] = lambda line: None,
) -> Scales:
    """Trains models of several widths, one step per batch, and reads their points.

    Args:
      config: of the run; its `model.base` is the model whose width the factors multiply.
      parametrization: of the models.
      batches: those of the steps. The points are read on the first, before each step.
      factors: widths, divided by that of the base model.
      seeds: runs per width; their values are averaged.
      done: takes a line of text after each width.
    """
    values, losses, widths = [], [], []
    stacked = stack_batches(batches)
    points = points_in(config.model, POINTS)
    for factor in factors:
        wide = widen(config, factor, parametrization)
        runs = [
            jax.device_get(_train(wide, points, stacked, np.uint32(config.seed + i)))
            for i in range(seeds)
        ]
        values.append(np.mean([run[0] for run in runs], 0))
        losses.append(np.mean([run[1] for run in runs], 0))
        widths.append(wide.model.d_model)
        done(f'{parametrization}, d_model {widths[-1]}: loss {losses[-1][-1]:.3f}')
    return Scales(
        parametrization=parametrization,
        widths=tuple(widths),
        points=points,
        values=np.array(values),
        losses=np.array(losses),
    )


@functools.partial(jax.jit, static_argnames=('config', 'points'))
def _train(
    config: RunConfig, points: tuple[str, ...], batches: Any, seed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the scales of points before each step, `[step, point]`, and the losses."""
    beginning = plan_beginning(config)
    numbers = beginning.numbers | {'seed': seed}
    parts = StepParts(
        model=GPT(config.model),
        optimizer=beginning.optimizer,
        schedule=beginning.schedule,
        train=config.train,
        trainable=beginning.trainable,
    )
    train_step, probe = make_train_step(parts), batches['tokens'][0, :, :-1]

    def step(state: TrainState, batch: Any) -> Any:
        params = beginning.trainable.join(state.params, state.base)
        found = forward(config.model, params, probe)
        scales = jnp.stack([_scale(found, point) for point in points])
        state, metrics = train_step(state, batch, numbers)
        return state, (scales, metrics['loss'])

    key = jax.random.key(seed)
    state = init_state(key, model=config.model, begin=beginning.begin)
    return jax.lax.scan(step, state, batches)[1]


def _scale(found: dict[str, jax.Array], point: str) -> jax.Array:
    """Returns the mean absolute value of a point over all layers, without masked scores."""
    total, count = jnp.zeros(()), jnp.zeros(())
    for name, value in found.items():
        if name == point or (name.startswith('blocks.') and name.split('.', 2)[2] == point):
            seen = value > MASKED / 2
            total += jnp.where(seen, jnp.abs(value), 0.0).sum(dtype=jnp.float32)
            count += seen.sum(dtype=jnp.float32)
    return total / count
