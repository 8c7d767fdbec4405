"""The analyses by name, one file each."""

from gpt_jax.inspector.analyses.ablation import Ablation
from gpt_jax.inspector.analyses.attention import AttentionMaps
from gpt_jax.inspector.analyses.attribution import Attribution
from gpt_jax.inspector.analyses.base import Analysis, ShowProgress
from gpt_jax.inspector.analyses.cost import Cost
from gpt_jax.inspector.analyses.heads import HeadKinds
from gpt_jax.inspector.analyses.lens import Lens
from gpt_jax.inspector.analyses.neurons import TopTokens
from gpt_jax.inspector.analyses.patching import Patching
from gpt_jax.inspector.analyses.residual import Residual
from gpt_jax.inspector.analyses.token_loss import TokenLoss

ANALYSES: dict[str, type[Analysis]] = {
    each.name: each
    for each in (
        TokenLoss,
        AttentionMaps,
        HeadKinds,
        Lens,
        Attribution,
        Ablation,
        Patching,
        Residual,
        TopTokens,
        Cost,
    )
}

__all__ = ['ANALYSES', 'Analysis', 'ShowProgress']
