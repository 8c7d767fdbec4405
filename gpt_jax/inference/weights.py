"""The weights as decoding reads them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
        leaf = leaves.pop(path)
        for own, index in _places(path, leaf, config).items():
            converted[own] = call(
                _convert,
                leaf,
                index,
                dtype=compute if path[-1] in MATRICES else '',
                inputs=declared[name].inputs if rounds else None,
            )
    return traverse_util.unflatten_dict(converted)


def _places(
    path: tuple[str, ...], leaf: jax.Array, config: ModelConfig
) -> dict[tuple[str, ...], int | None]:
    """Returns the paths of a stored parameter's layers and their indices; None: it is whole."""
    indices = np.arange(leaf.shape[0] if leaf.ndim else 1)
    parts = to_executed(traverse_util.unflatten_dict({path: indices}), config, scan=False)
    places = traverse_util.flatten_dict(parts)
    return {own: None if np.ndim(index) else int(index) for own, index in places.items()}


@functools.partial(jax.jit, static_argnames=('dtype', 'inputs'))
def _convert(leaf: jax.Array, index: Any, *, dtype: str, inputs: int | None) -> Any:
    """Converts a stored parameter, or one layer of it.

    Args:
      leaf: the parameter, of all layers if it is stacked.
      index: of the layer; not static, so all layers share a program. None: the whole parameter.
      dtype: of the result; '': unchanged.
      inputs: the axes that a matrix of integers sums over; None: no integers.
    """
    if index is not None:
        leaf = leaf[index]
    if inputs is not None:
        return to_int8_matrix(leaf, inputs=inputs)
    return leaf.astype(jnp.dtype(dtype or leaf.dtype))
