"""`configs/induction.py` with scores of its heads during training."""

from configs import induction
from gpt_jax.config import RunConfig
from gpt_jax.inspector.analyses import ANALYSES
from gpt_jax.inspector.inspector import Inspector
from gpt_jax.train.evaluators import Evaluator, Report

TEXT = 'a b c d a b c d'  # the analysis also scores random tokens, which are read here
EVERY = 10


def get_config(variant: str = '') -> RunConfig:
    """The run; the variants are those of `configs/induction.py`."""
    config = induction.get_config(variant)
    config.eval.every = EVERY
    config.eval.batches = 4
    config.train.log_every = EVERY
    config.train.sinks = ('jsonl',)
    config.sample.at_end = False
    config.checkpoint.save_every = 0
    config.checkpoint.keep_best = False
    return config


def evaluators(config: RunConfig) -> list[Evaluator]:
    """Scores the heads as often as the loss is evaluated."""
    return [Evaluator(name='heads', every=config.eval.every, run=score_heads)]


def score_heads(trainer, state) -> Report:
    """Returns the largest score over all heads of each layer, on random tokens that repeat."""
    params = trainer.program.join(state.params, state.base)
    inspector = Inspector(trainer.config.model, params, trainer.tokenizer)
    kinds = ANALYSES['heads'].run(inspector, TEXT)
    row = {
        'heads/induction': float(kinds.induction_random.values.max()),
        'heads/previous': float(kinds.previous.values.max()),
        'heads/loss_random': kinds.loss_random,
        'heads/loss_repeated': kinds.loss_repeated,
    }
    return Report(row, [f'induction score {row["heads/induction"]:.3f}'])
