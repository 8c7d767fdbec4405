"""The base of every attention's config, and what all layers share in one call of the model."""

import dataclasses

import flax.struct
from flax import linen as nn
from jaxtyping import Array, Int

from gpt_jax.kernels.scores import AttentionMask
from gpt_jax.model.options import CommonConfig, Kernels


@flax.struct.dataclass
class AttentionContext:
    """The positions and the mask of a call of the model, and the index of the layer."""

    positions_BL: Int[Array, 'B L']
    mask: AttentionMask
    layer: Int[Array, ''] | int = 0  # traced when layers run in a loop


@dataclasses.dataclass(slots=True, kw_only=True)
class BaseAttention:
    """The base of the configs of attentions: their knobs, cache and FLOPs.

    A subclass implements every method and is listed in `Attention`. It imports nothing of
    `gpt_jax.model.config`, which has that union.
    """

    def make(self, config: CommonConfig, *, kernels: Kernels, window: int, name: str) -> nn.Module:
        """Returns the module: (x `[..., D]`, AttentionContext, LayerCache, dropout key) -> (
        `[..., D]`, LayerCache).

        Args:
          config: the model's.
          kernels: those of the backend.
          window: how far back a query sees, in tokens; 0: no limit.
          name: of the module.
        """
        raise NotImplementedError

    def finalize(self, config: CommonConfig) -> None:
        """Fills derived values of the knobs, and of `config`, in place, and checks them.

        Raises:
            UserError: a value cannot work; the message names its key.
        """

    def cache_shapes(self, config: CommonConfig) -> dict[str, tuple[int, int]]:
        """Returns (heads, width) of each array that a layer keeps per token when decoding."""
        raise NotImplementedError

    def describe(self, config: CommonConfig) -> str:
        """Returns the heads in words, for the table at the start of a run."""
        return f'{config.num_heads} heads of {config.head_dim}' + _shared(config)

    def score_width(self, config: CommonConfig) -> int:
        """Returns the width of the heads that a kernel gets."""
        return config.head_dim

    def score_heads(self, config: CommonConfig) -> int:
        """Returns the number of query heads that a kernel gets."""
        return config.num_heads

    def flops(self, config: CommonConfig, span: int) -> float:
        """Returns forward FLOPs per token and layer of all products but those with parameters.

        Args:
          config: the model's.
          span: number of keys per query.
        """
        raise NotImplementedError


def _shared(config: CommonConfig) -> str:
    if config.num_kv_heads == config.num_heads:
        return ''
    return f' over {config.num_kv_heads} key/value heads'
