"""A small GPT that is also evaluated on longer windows than it was trained on."""

import dataclasses

from experiments import small
from gpt_jax.config import RunConfig
from gpt_jax.model.config import PositionKind
from gpt_jax.train.evaluators import Evaluator, Report
from gpt_jax.train.program import make_program
from gpt_jax.train.trainer import evaluate_shards

FACTORS = (1, 2, 4, 8)  # windows, divided by the length of training


def get_config(variant: str = '') -> RunConfig:
    """The run; its variants are the kinds of positions."""
    config = small.get_config()
    config.model.position = PositionKind(variant or 'rope')
    # As published; positions would drown the tokens otherwise.
    config.model.scale_embedding = config.model.position == PositionKind.SINUSOIDAL
    config.model.d_model = 128
    config.model.num_layers = 4
    config.train.num_steps = 1000
    config.schedule.warmup_steps = 100
    config.eval.every = 500
    config.train.log_every = 100
    config.eval.batches = 0
    return config


def evaluators(config: RunConfig) -> list[Evaluator]:
    """Measures the loss at all lengths when the run ends."""
    return [Evaluator(name='lengths', every=0, run=evaluate_lengths)]


def evaluate_lengths(trainer, state) -> Report:
    """Returns the loss over the whole validation text, cut into windows of each length.

    Learned positions have no row beyond the trained length, so they are measured there only.
    """
    config, row, lines = trainer.config, {}, []
    learned = config.model.position == PositionKind.LEARNED
    params = trainer.program.join(state.params, state.base)
    for factor in FACTORS[: 1 if learned else None]:
        length = factor * config.model.max_seq_len
        longer = dataclasses.replace(
            config, model=dataclasses.replace(config.model, max_seq_len=length)
        )
        program = make_program(longer, trainer.program.mesh)
        size = max(1, config.eval.batch_size // factor)
        found = evaluate_shards(
            program,
            longer,
            params,
            trainer.validation,
            windows=config.data.windows,
            limit=0,
            batch_size=size,
        )
        row[f'lengths/{factor}x'] = found.loss
        lines.append(f'loss in windows of {length} tokens: {found.loss:.4f}')
    return Report(row, lines)
