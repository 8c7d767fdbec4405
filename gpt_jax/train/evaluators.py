"""Periodic evaluations: the entries of the list that the trainer runs between steps.

An evaluator measures a state and returns a `Report`. The validation loss of the weights and of
their average, the accuracy in tasks, and samples are such entries; a config file may add more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gpt_jax.errors import UserError
from gpt_jax.evaluate.task import flatten
from gpt_jax.train.state import TrainState

if TYPE_CHECKING:
    from gpt_jax.train.trainer import Trainer


class Report(NamedTuple):
    """The result of an evaluator."""

    row: Mapping[str, float] = {}  # for the metrics, by full name: 'eval/loss'
    lines: Sequence[str] = ()  # for the terminal
    loss: float | None = None  # decides which checkpoint is the best
    sample: str = ''  # a text to show and to keep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A measurement that is repeated during training."""

    name: str
    every: int  # steps between two; 0: only at the end
    run: Callable[[Trainer, TrainState], Report]  # collective: all processes call it
    at_start: bool = False  # also before the first step, on weights from elsewhere
    at_end: bool = True  # also after the last step
    before_save: bool = False  # a checkpoint of the same step waits for the report

    def is_due(self, step: int, *, last: bool) -> bool:
        """Returns whether the evaluator runs after `step`."""
        return (last and self.at_end) or is_due(self.every, step)

    def is_due_first(self, step: int, *, last: bool) -> bool:
        """Returns whether the evaluator runs before the first step of a training from `step`."""
        return self.is_due(step, last=last) if step else self.at_start


def is_due(every: int, step: int) -> bool:
    """Returns whether `step` is a multiple of `every`; 0 means never."""
    return every > 0 and step % every == 0


def default_evaluators(trainer: Trainer) -> list[Evaluator]:
    """Returns the evaluators that the config asks for."""
    config = trainer.config
    loss = Evaluator(
        name='loss',
        every=config.eval.every,
        run=evaluate_loss,
        at_start=True,
        at_end=config.eval.at_end,
        before_save=True,
    )
    tasks = Evaluator(name='tasks', every=config.eval.tasks_every, run=run_tasks, before_save=True)
    sample = Evaluator(
        name='sample', every=config.sample.every, run=draw_sample, at_end=config.sample.at_end
    )
    return [loss, *([tasks] if trainer.tasks else []), sample]


def check_evaluators(evaluators: Sequence[Evaluator]) -> None:
    """Rejects what a config file may return by mistake.

    Raises:
        UserError: an entry is no Evaluator, or two have one name.
    """
    names = []
    for each in evaluators:
        if not isinstance(each, Evaluator):
            raise UserError(
                f'evaluators(config) returned {each!r:.80}; its entries must be '
                f'gpt_jax.train.evaluators.Evaluator'
            )
        if each.name in names:
            raise UserError(f'two evaluators have the name {each.name!r}; rename one')
        names.append(each.name)


def evaluate_loss(trainer: Trainer, state: TrainState) -> Report:
    """Measures the loss on the validation windows, of the weights and of their average."""
    results = trainer.evaluate(state)
    row = {
        f'{prefix}/{name}': float(value)
        for prefix, result in results.items()
        for name, value in result.row().items()
    }
    parts = [f'{prefix} loss {result.describe()}' for prefix, result in results.items()]
    return Report(row, [', '.join(parts)], loss=results['eval'].loss)


def run_tasks(trainer: Trainer, state: TrainState) -> Report:
    """Measures the accuracy in the tasks of `config.eval.tasks`."""
    row, lines = {}, []
    for prefix, params in trainer.weights(state):
        for task in trainer.tasks:
            name = f'{prefix}/{task.name}'
            metrics = task.run(trainer.scorer, params).metrics
            row |= {f'{name}/{key}': value for key, value in flatten(metrics).items()}
            numbers = [
                f'{key} {value:.4f} ± {error:.4f}' for key, (value, error) in metrics.items()
            ]
            lines.append(f'{name} ' + ', '.join(numbers))
    return Report({key: math.nan if x is None else x for key, x in row.items()}, lines)


def draw_sample(trainer: Trainer, state: TrainState) -> Report:
    """Generates a text from `config.sample.prompt`."""
    return Report(sample=trainer.sample(state))
