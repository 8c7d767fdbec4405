"""The analyses by name, one file each."""

from gpt_jax.inspector.analyses.attention import AttentionMaps
from gpt_jax.inspector.analyses.base import Analysis, ShowProgress

ANALYSES: dict[str, type[Analysis]] = {each.name: each for each in (AttentionMaps,)}

__all__ = ['ANALYSES', 'Analysis', 'ShowProgress']
