"""The base of every MLP's config."""

import dataclasses
from fractions import Fraction

from flax import linen as nn

from gpt_jax.model.options import CommonConfig, Kernels


@dataclasses.dataclass(slots=True, kw_only=True)
class BaseMLP:
    """The base of the configs of MLPs, the position-wise feed-forward networks of blocks.

    A subclass is listed in `MLP`. It imports nothing of `gpt_jax.model.config`, which has that
    union.
    """

    def make(self, config: CommonConfig, *, kernels: Kernels, name: str) -> nn.Module | None:
        """Returns the module, from x `[..., D]` to `[..., D]`; None: blocks have no MLP."""
        raise NotImplementedError

    def finalize(self, config: CommonConfig) -> None:
        """Fills derived values of the knobs in place and checks them.

        Raises:
            UserError: a value cannot work; the message names its key.
        """

    def resize(self, share: Fraction) -> 'BaseMLP':
        """Returns the config of an MLP for another `d_ff`, which is `share` of this one's.

        Raises:
            UserError: a width of its own has no whole value in proportion.
        """
        del share
        return self

    def flops(self, config: CommonConfig) -> float:
        """Returns forward FLOPs per token and layer of all products but those with parameters."""
        return 0.0

    def width(self, config: CommonConfig) -> int:
        """Returns the size of the widest activation per token."""
        raise NotImplementedError

    def describe(self, config: CommonConfig) -> str:
        """Returns the sizes in words, for the table at the start of a run."""
        raise NotImplementedError

    def last_weights(self, config: CommonConfig) -> int:
        """Returns the weights of a layer's last product if it gives the output of the MLP, else 0.

        The backward pass of a pre-norm block never needs its result.
        """
        return 0
