"""Checkpoints: named trees of arrays and some JSON, verified when read.

`Checkpointer` saves and restores. `manifest` is the document stored with the arrays. `disk` and
`bucket` write and read the arrays.
"""

from gpt_jax.checkpoint.checkpointer import CheckpointConfig, Checkpointer, Restored

__all__ = ['CheckpointConfig', 'Checkpointer', 'Restored']
