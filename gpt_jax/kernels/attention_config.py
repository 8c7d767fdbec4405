"""The part of the model's configuration that decides which attention kernel can run."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class AttentionConfig(Protocol):
    """The fields of `ModelConfig` that the attention kernels read."""

    attention_soft_cap: float
    position: str
    head_dim: int
    dropouts: Any  # its rate `attention`
    precision: Any  # its dtype `compute`
    execution: Any  # its `attention_kernel`: the name of a kernel, or 'auto'
