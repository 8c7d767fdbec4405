"""Blocks without an MLP: attention-only transformers."""

import dataclasses
from typing import ClassVar

from gpt_jax.model.mlp.base import BaseMLP
from gpt_jax.model.options import CommonConfig, Kernels


@dataclasses.dataclass(slots=True, kw_only=True)
class NoMLP(BaseMLP):
    """No MLP: the block has neither this branch nor its norms.

    Elhage et al. 2021, https://transformer-circuits.pub/2021/framework
    """

    chosen_by: ClassVar[str] = 'none'  # --config.model.mlp=none

    def make(self, config: CommonConfig, *, kernels: Kernels, name: str) -> None:
        """Returns None."""

    def width(self, config: CommonConfig) -> int:
        """Returns 0."""
        return 0

    def describe(self, config: CommonConfig) -> str:
        """Returns the line of the summary: no MLP."""
        return 'no MLP'
