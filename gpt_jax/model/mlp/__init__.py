"""MLPs: the union of their kinds. `config.model.mlp` is one of them."""

from gpt_jax.model.mlp.dense import Dense
from gpt_jax.model.mlp.experts import MixtureOfExperts

MLP = Dense | MixtureOfExperts

__all__ = ['MLP', 'Dense', 'MixtureOfExperts']
