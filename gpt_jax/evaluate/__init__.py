"""Evaluation of a model: its loss on windows of tokens, and its accuracy in tasks."""

from gpt_jax.evaluate.windows import Evaluation, evaluate

__all__ = ['Evaluation', 'evaluate']
