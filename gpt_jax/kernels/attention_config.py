"""The part of the model's configuration that decides which attention kernel can run."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class AttentionConfig(Protocol):
    """The fields of `ModelConfig` that the attention kernels read."""

    attention_kernel: str
    attention_soft_cap: float
    attention_dropout: float
    position: str
    compute_dtype: str
    head_dim: int
