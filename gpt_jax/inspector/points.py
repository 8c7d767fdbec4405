"""The points of a model: their names, dimensions and shapes, and the names of TransformerLens."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import GPT, abstract_params
from gpt_jax.model.layer_stack import to_executed

DIMENSIONS = {
    'B': 'batch',
    'L': 'position',
    'S': 'source',  # position of the key that a query looks at
    'D': 'd_model',
    'F': 'neuron',
    'H': 'head',  # 'map' where heads have several, as in differential attention
    'G': 'kv_head',
    'K': 'head_dim',
    'V': 'token',
    'E': 'expert',
    'X': 'choice',  # of the experts of a token
}
ONCE = ('embedding', 'final_norm', 'logits')  # points outside the layers

# Names of the TransformerBridge of TransformerLens, https://transformerlensorg.github.io, by ours.
# Its `hook_normalized` of norms is before their scale and bias, and has no point here.
TRANSFORMER_LENS = {
    'embedding': 'hook_embed',
    'residual_before': 'hook_resid_pre',
    'residual_middle': 'hook_resid_mid',
    'residual_after': 'hook_resid_post',
    'attention_input': 'ln1.hook_out',
    'attention_output': 'hook_attn_out',
    'mlp_input': 'ln2.hook_out',
    'mlp_output': 'hook_mlp_out',
    'attention.projected_query': 'attn.hook_q',
    'attention.projected_key': 'attn.hook_k',
    'attention.query': 'attn.hook_rot_q',
    'attention.key': 'attn.hook_rot_k',
    'attention.value': 'attn.hook_v',
    'attention.scores': 'attn.hook_attn_scores',
    'attention.weights': 'attn.hook_pattern',
    'attention.heads': 'attn.hook_z',
    'mlp.pre_activation': 'mlp.hook_pre',
    'mlp.up': 'mlp.hook_pre_linear',
    'mlp.hidden': 'mlp.hook_post',
    'final_norm': 'ln_final.hook_out',
}
_OURS = {theirs: ours for ours, theirs in TRANSFORMER_LENS.items()}


class Point(NamedTuple):
    """A point of a model: the names of its dimensions after the batch, and its shape."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]


def name_of(path: tuple[str, ...], name: str) -> str:
    """Returns the name of a point from its module's path: `blocks.3.attention.weights`."""
    return '.'.join([*(part.removeprefix('layer_') for part in path), name])


def resolve(point: str, layer: int | None = None) -> str:
    """Returns our name of a point, which may be TransformerLens'; `layer` completes a short one.

    `attention.weights` of layer 3 is `blocks.3.attention.weights`.

    Raises:
        UserError: it is no text.
    """
    if not isinstance(point, str):
        raise UserError(f'a point must be a name, such as attention.weights, and not {point!r}')
    match = re.fullmatch(r'blocks\.(\d+)\.(.+)', point)
    number, rest = (match[1], match[2]) if match else (layer, point)
    rest = _OURS.get(rest, rest)
    return rest if number is None or rest in ONCE else f'blocks.{number}.{rest}'


def check_point(name: str, known: dict[str, Point], *, layers: int) -> str:
    """Returns the name if the model has this point.

    Raises:
        UserError: it has none of this name; names the nearest.
    """
    if name in known:
        return name
    match = re.fullmatch(r'blocks\.(\d+)\.(.+)', name)
    if match and int(match[1]) >= layers:
        raise UserError(f'point {name}: the model has layers 0 to {layers - 1}')
    short = sorted({re.sub(r'^blocks\.\d+\.', '', each) for each in known})
    candidates = list(known) if match else short
    theirs = {each: TRANSFORMER_LENS[each] for each in short if each in TRANSFORMER_LENS}
    candidates += [f'blocks.{match[1]}.{each}' if match else each for each in theirs.values()]
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.3)
    hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(short)}'
    raise UserError(f'the model has no point {name!r}; {hint}')


def points_of(config: ModelConfig, length: int) -> dict[str, Point]:
    """Returns all points of a model by name, in the order in which it computes them.

    Args:
      config: the model's.
      length: number of tokens.
    """
    return _points_of(freeze(config), length)


def has_point(config: ModelConfig, name: str) -> bool:
    """Returns whether a model has a point."""
    return name in points_of(config, 1)


def points_in(config: ModelConfig, points: Iterable[str]) -> tuple[str, ...]:
    """Returns those of some points, named without their layers, that a model has in some layer."""
    known = {name.split('.', 2)[-1] for name in points_of(config, 1)}
    return tuple(point for point in points if point in known)


@functools.lru_cache(maxsize=32)
def _points_of(config: ModelConfig, length: int) -> dict[str, Point]:
    found: dict[str, Point] = {}

    def note(name: str, x: jax.Array, dims: str) -> jax.Array:
        names = tuple(
            'map' if letter == 'H' and size != config.num_heads else DIMENSIONS[letter]
            for letter, size in zip(dims, x.shape, strict=True)
        )
        found[name] = Point(names[1:], x.shape[1:])  # without the batch
        return x

    run = lambda params, tokens: apply_unrolled(config, params, tokens, visiting(note))  # noqa: E731
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    jax.eval_shape(run, nn.unbox(abstract_params(config)), tokens)
    return found


def apply_unrolled(
    config: ModelConfig,
    params: Any,
    tokens_BL: Int[Array, 'B L'],
    interceptor: Callable[..., Any],
    *,
    method: Callable[..., Any] | None = None,
) -> Any:
    """Runs the model, unrolled and with the plain attention, under an interceptor of flax.

    Args:
      config: the model's.
      params: in the stored layout.
      tokens_BL: ids.
      interceptor: see `flax.linen.intercept_methods`.
      method: of the model; None: its call.
    """
    executed = {'params': to_executed(params, config, scan=False)}
    with nn.intercept_methods(interceptor):
        return GPT(config, flat=False).apply(executed, tokens_BL, method=method)


def visiting(visit: Callable[[str, jax.Array, str], jax.Array]) -> Callable[..., Any]:
    """Returns an interceptor that gives every point to `visit`, and takes its value from there.

    `visit` gets the name, the value and the letters of its dimensions; query heads are one, `H`.
    """

    def see(next_function, args, kwargs, context):
        if context.method_name != 'tap':
            return next_function(*args, **kwargs)
        name, x, dims = _arguments(*args, **kwargs)
        shape = x.shape
        if 'GR' in dims:
            at = dims.index('GR')
            x, dims = x.reshape(*shape[:at], -1, *shape[at + 2 :]), dims.replace('GR', 'H')
        return visit(name_of(context.module.path, name), x, dims).reshape(shape)

    return see


def _arguments(name: str, x: jax.Array, dims: str = 'BLD') -> tuple[str, jax.Array, str]:
    """Returns the arguments of a call of `Tapped.tap`."""
    return name, x, dims
