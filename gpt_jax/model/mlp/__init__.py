"""MLPs: the union of their kinds. `config.model.mlp` is one of them."""

from gpt_jax.model.mlp.dense import Dense
from gpt_jax.model.mlp.experts import MixtureOfExperts
from gpt_jax.model.mlp.none import NoMLP

MLP = Dense | MixtureOfExperts | NoMLP

__all__ = ['MLP', 'Dense', 'MixtureOfExperts', 'NoMLP']
