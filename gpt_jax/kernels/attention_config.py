"""The part of the model's configuration that decides which attention kernel can run."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class AttentionConfig(Protocol):
    """A `ModelConfig`, as far as the kernels ask for it."""

    attention_kernel: str
    attention_soft_cap: float
    attention_dropout: float
    position: str
    compute_dtype: str
    head_dim: int
