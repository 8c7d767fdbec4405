"""The analyses by name, one file each."""

from gpt_jax.inspector.analyses.ablation import Ablation
from gpt_jax.inspector.analyses.attention import AttentionMaps
from gpt_jax.inspector.analyses.base import Analysis, ShowProgress
from gpt_jax.inspector.analyses.heads import HeadKinds
from gpt_jax.inspector.analyses.neurons import TopTokens
from gpt_jax.inspector.analyses.patching import Patching

ANALYSES: dict[str, type[Analysis]] = {
    each.name: each for each in (AttentionMaps, HeadKinds, Ablation, Patching, TopTokens)
}

__all__ = ['ANALYSES', 'Analysis', 'ShowProgress']
