"""The weights as decoding reads them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from gpt_jax.inference.config import WeightType
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.model.weight_rounding import has_int8_form, to_int8_matrix

MATRICES = ('kernel', 'table')  # parameters used only in products, in the compute dtype


def prepare_weights(
    params: dict[str, Any],
    config: ModelConfig,
    weight_dtype: WeightType,
    *,
    consume: bool = False,
    call: Callable[..., Any] = lambda program, *args, **options: program(*args, **options),
) -> dict[str, Any]:
    """Converts stored parameters for decoding: layers unrolled, matrices in their type.

    Args:
      params: in the stored layout.
      config: of the model, with the dtype that decoding computes in.
      weight_dtype: of the matrices.
      consume: empty `params`, and free each parameter when it is converted, so that not all are in
        memory twice.
      call: runs a compiled program on its arguments.
    """
    declared = parameter_groups(config).declared
    compute = str(config.precision.compute)
    leaves, converted = traverse_util.flatten_dict(params), {}
    if consume:
        params.clear()
    for path in sorted(leaves):
        name = '/'.join(path)
        rounds = weight_dtype == WeightType.INT8 and has_int8_form(name, declared[name])
        part = call(
            _convert,
            traverse_util.unflatten_dict({path: leaves.pop(path)}),
            config=config,
            dtype=compute if path[-1] in MATRICES else '',
            inputs=declared[name].inputs if rounds else None,
        )
        converted |= traverse_util.flatten_dict(part)
    return traverse_util.unflatten_dict(converted)


@functools.partial(jax.jit, static_argnames=('config', 'dtype', 'inputs'))
def _convert(
    part: dict[str, Any], *, config: ModelConfig, dtype: str, inputs: int | None
) -> dict[str, Any]:
    """Converts a stored parameter, in its place in the tree.

    Args:
      part: a tree with the parameter alone.
      config: of the model.
      dtype: of the result; '': unchanged.
      inputs: the axes that a matrix of integers sums over; None: no integers.
    """

    def convert(leaf: jax.Array) -> Any:
        if inputs is not None:
            return to_int8_matrix(leaf, inputs=inputs)
        return leaf.astype(jnp.dtype(dtype or leaf.dtype))

    return jax.tree.map(convert, to_executed(part, config, scan=False))
