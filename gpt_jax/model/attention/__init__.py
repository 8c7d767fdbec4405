"""Causal self-attention: the union of its kinds. `config.model.attention` is one of them."""

from gpt_jax.model.attention.attend import attend
from gpt_jax.model.attention.base import AttentionContext
from gpt_jax.model.attention.differential import Differential
from gpt_jax.model.attention.grouped_query import GroupedQuery
from gpt_jax.model.attention.latent import Latent

Attention = GroupedQuery | Latent | Differential

__all__ = ['Attention', 'AttentionContext', 'Differential', 'GroupedQuery', 'Latent', 'attend']
