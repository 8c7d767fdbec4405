"""The forward pass whose points are read and changed."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gpt_jax.config_tree import freeze
from gpt_jax.inspector.points import apply_unrolled, visiting
from gpt_jax.model.block import Block
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import GPT


@flax.struct.dataclass
class Change:
    """A change of a point: `value` where `mask` is true, and then `added`.

    Each broadcasts to the point's dimensions, without the batch.
    """

    mask: Bool[Array, '...'] | None = None  # None: nowhere
    value: Float[Array, '...'] | float = 0.0
    added: Float[Array, '...'] | float = 0.0

    def apply(self, x: Float[Array, 'B ...']) -> Float[Array, 'B ...']:
        """Returns the changed value of the point."""
        spread = lambda value, dtype: jnp.broadcast_to(jnp.asarray(value, dtype), x.shape)  # noqa: E731
        if self.mask is not None:
            x = jnp.where(spread(self.mask, bool), spread(self.value, x.dtype), x)
        return x + spread(self.added, x.dtype)


Changes = Mapping[str, Sequence[Change]]  # of points, by name; in order


@flax.struct.dataclass
class Start:
    """The first layer of a forward pass, and the residual stream before it."""

    layer: Int[Array, ''] | int
    residual: Float[Array, 'L D']


def forward(
    config: ModelConfig,
    params: Any,
    tokens_BL: Int[Array, 'B L'],
    changes: Changes | None = None,
    *,
    points: frozenset[str] | None = None,
    last: bool = False,
    start: Start | None = None,
) -> dict[str, jax.Array]:
    """Runs the model, changes points and returns the values of points, after the changes.

    The model runs unrolled and with the plain attention, whose weights exist. Use it inside
    `jax.jit`, `jax.vmap` or `jax.grad`, or call `run_forward`.

    Args:
      config: the model's.
      params: in the stored layout.
      tokens_BL: ids.
      changes: by name of the point.
      points: those to return; None: all.
      last: compute the logits of the last position alone; all take a third of GPT-2 124M's FLOPs.
      start: skip the layers before it, which costs no compilation for another layer; `points` must
        then be outside the layers.
    """
    changes, captured = changes or {}, {}

    def visit(name: str, x: jax.Array, dims: str) -> jax.Array:
        del dims
        for change in changes.get(name, ()):
            x = change.apply(x)
        if points is None or name in points:
            captured[name] = x
        return x

    method = _last_logits if last else None
    interceptor = visiting(visit)
    if start is not None:
        interceptor = _starting(start, interceptor)
    apply_unrolled(config, params, tokens_BL, interceptor, method=method)
    return captured


def _starting(start: Start, interceptor: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an interceptor that skips the layers before a start, and calls another inside."""

    def skip(next_function, args, kwargs, context):
        if not isinstance(context.module, Block) or context.method_name != '__call__':
            return interceptor(next_function, args, kwargs, context)
        x, *rest = args
        layer = int(context.module.name.removeprefix('layer_'))
        if layer == 0:
            x = jnp.broadcast_to(jnp.asarray(start.residual, x.dtype), x.shape)
        run = lambda x: next_function(x, *rest, **kwargs)[0]  # noqa: E731
        return jax.lax.cond(layer >= start.layer, run, lambda x: x, x), None

    return skip


def _last_logits(model: GPT, tokens_BL: Int[Array, 'B L']) -> Float[Array, 'B 1 V']:
    x_BLD, _ = model.hidden(tokens_BL)
    return model.logits(x_BLD[:, -1:])


@functools.partial(jax.jit, static_argnames=('config', 'points'))
def _run_forward(config, params, tokens_BL, changes, points):
    return forward(config, params, tokens_BL, changes, points=points)


def run_forward(
    config: ModelConfig,
    params: Any,
    tokens_BL: Int[Array, 'B L'],
    changes: Changes | None = None,
    *,
    points: frozenset[str] | None = None,
) -> dict[str, jax.Array]:
    """Runs `forward` as a compiled program, which is kept for equal shapes."""
    changes = {name: tuple(each) for name, each in (changes or {}).items()}
    return _run_forward(freeze(config), params, jnp.asarray(tokens_BL), changes, points)
