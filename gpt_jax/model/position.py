"""Position encodings: learned, sinusoidal, RoPE, ALiBi and none.

An encoding acts in one of three places: it adds to the token embeddings, rotates queries and
keys, or lowers attention scores with distance. `POSITIONS` lists the place of each.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax.model.linear import look_up
from gpt_jax.model.options import CommonConfig, PositionKind, RopeConfig
from gpt_jax.parameter import Role, declare


class LearnedPosition(nn.Module):
    """A learned vector per position, added to the token embeddings (GPT-1, GPT-2)."""

    config: CommonConfig

    @nn.compact
    def __call__(
        self, x_BLD: Float[Array, 'B L D'], positions_BL: Int[Array, 'B L']
    ) -> Float[Array, 'B L D']:
        """Returns the token embeddings plus the vectors of their positions."""
        c = self.config
        axes = ('positions', 'embed')
        init = declare(c.init.std, axes, role=Role.EMBEDDING, in_product=False)
        shape = (c.position_offset + c.max_seq_len, c.d_model)
        table = self.param('table', init, shape, jnp.dtype(c.precision.params))
        if c.position_offset:
            positions_BL += c.position_offset
        return x_BLD + look_up(table, positions_BL, 'positions').astype(x_BLD.dtype)


class SinusoidalPosition(nn.Module):
    """Fixed sines and cosines, added to the token embeddings.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """

    config: CommonConfig

    def __call__(
        self, x_BLD: Float[Array, 'B L D'], positions_BL: Int[Array, 'B L']
    ) -> Float[Array, 'B L D']:
        """Returns the token embeddings plus the sines and cosines of their positions."""
        half = self.config.d_model // 2
        frequencies = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
        angles = positions_BL[..., None].astype(jnp.float32) * frequencies[None, None, :]
        return x_BLD + jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).astype(x_BLD.dtype)


def rotate(
    config: CommonConfig, x_BLHK: Float[Array, 'B L H K'], positions_BL: Int[Array, 'B L']
) -> Float[Array, 'B L H K']:
    """Rotates the pairs `(i, i + R/2)` of queries or keys by angles that grow with the position.

    Su et al. 2021, https://arxiv.org/abs/2104.09864. `R` is the part of the head that is rotated.
    """
    R = rotated_width(config, x_BLHK.shape[-1])
    if x_BLHK.shape[-1] > R:
        first = _rotate(config, x_BLHK[..., :R], positions_BL, width=x_BLHK.shape[-1])
        return jnp.concatenate([first, x_BLHK[..., R:]], -1)
    return _rotate(config, x_BLHK, positions_BL, width=x_BLHK.shape[-1])


def _rotate(
    config: CommonConfig, x_BLHR: jax.Array, positions_BL: jax.Array, *, width: int
) -> Float[Array, 'B L H R']:
    frequencies = rope_frequencies(config, width)
    angles = positions_BL[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if config.rope.attention_factor != 1:
        sin, cos = sin * config.rope.attention_factor, cos * config.rope.attention_factor
    first, second = jnp.split(x_BLHR.astype(jnp.float32), 2, -1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, -1).astype(x_BLHR.dtype)


def rotated_width(config: CommonConfig, width: int = 0) -> int:
    """Returns the part of a head's width that is rotated; `width` 0: head_dim."""
    return int((width or config.head_dim) * config.rope.fraction)


def rope_frequencies(config: CommonConfig, width: int = 0) -> np.ndarray:
    """Returns the angle per position by which each pair of a head is rotated, float32 [R/2].

    `width` is the head's, `K` (0: head_dim), of which `R` is rotated.

    Scaling divides all of them (Chen et al. 2023, https://arxiv.org/abs/2306.15595). With
    `rope.original_seq_len` it divides those of long waves and leaves those of short waves
    unchanged, relative to that context, and interpolates between them (Llama 3.1: Grattafiori et
    al. 2024, https://arxiv.org/abs/2407.21783). YaRN interpolates linearly in the index of the
    pair (Peng et al. 2023, https://arxiv.org/abs/2309.00071).
    """
    c = config
    half = rotated_width(c, width) // 2
    frequencies = c.rope.base ** -(np.arange(half) / half)
    slowed = frequencies / c.rope.scaling
    if c.rope.yarn:
        low, high = _yarn_range(c.rope, half)
        scaled = np.clip((np.arange(half) - low) / (high - low), 0, 1)
        slowed = scaled * slowed + (1 - scaled) * frequencies
    elif c.rope.original_seq_len:
        waves = c.rope.original_seq_len * frequencies / (2 * np.pi)  # in the original context
        ramp = (waves - c.rope.low_freq_factor) / (c.rope.high_freq_factor - c.rope.low_freq_factor)
        kept = np.clip(ramp, 0, 1)
        slowed = kept * frequencies + (1 - kept) * slowed
    return slowed.astype(np.float32)


def _yarn_range(rope: RopeConfig, half: int) -> tuple[float, float]:
    """Returns the pairs at which YaRN's interpolation begins and ends."""

    def pair(turns: float) -> float:
        """Returns the pair, a real number, that turns this often in the original context."""
        return half * np.log(rope.original_seq_len / (turns * 2 * np.pi)) / np.log(rope.base)

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.yarn_truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    return float(low), float(high + 0.001 * (low == high))


def yarn_growth(rope: RopeConfig) -> float:
    """Returns what YaRN's `mscale` is multiplied by: a tenth of the logarithm of the scaling."""
    return 0.1 * math.log(rope.scaling) if rope.scaling > 1 else 0.0


def alibi_slopes(config: CommonConfig) -> Float[Array, 'H']:
    """Returns the amount that each head subtracts from a score per token of distance.

    Press et al. 2021, https://arxiv.org/abs/2108.12409, with its rule for head counts that are
    not a power of two.
    """

    def geometric(heads: int) -> np.ndarray:
        return 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)

    heads = config.num_heads
    power = 2 ** int(np.log2(heads))
    slopes = np.concatenate([geometric(power), geometric(2 * power)[::2][: heads - power]])
    return jnp.asarray(slopes, jnp.float32)


class Position(NamedTuple):
    """The functions of an encoding, by the place where they act; None: not there."""

    embed: type[nn.Module] | None = None  # on the token embeddings
    rotate: Callable[..., jax.Array] | None = None  # on queries and keys
    slopes: Callable[[CommonConfig], jax.Array] | None = None  # on the scores


POSITIONS = {
    PositionKind.LEARNED: Position(embed=LearnedPosition),
    PositionKind.SINUSOIDAL: Position(embed=SinusoidalPosition),
    PositionKind.ROPE: Position(rotate=rotate),
    PositionKind.ALIBI: Position(slopes=alibi_slopes),
    PositionKind.NONE: Position(),
}


def default_positions(batch: int, length: int) -> Int[Array, 'B L']:
    """Returns 0, 1, 2 … in every row."""
    return jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))
