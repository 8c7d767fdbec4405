"""The place where a training run writes: checkpoints, metrics and samples."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from gpt_jax import files
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.errors import Diverged
from gpt_jax.parallel import peers
from gpt_jax.telemetry.metrics import MetricsWriter
from gpt_jax.train.state import TrainState
from gpt_jax.train.training_clock import TrainingClock

DIVERGED = 'train/diverged'  # column of the last row of a run that ended for its numbers


class Nowhere:
    """The place of a training that keeps nothing but its state, such as `GPT.fit`."""

    best_loss = math.inf  # the lowest evaluation loss of a saved checkpoint

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Adds a row of metrics."""

    def flush(self) -> None:
        """Returns when all rows are on disk."""

    def save(self, state: TrainState, step: int, eval_loss: float | None) -> None:
        """Saves a checkpoint."""

    def set_loss(self, step: int, eval_loss: float) -> None:
        """Adds the loss to a checkpoint that is saved already."""

    def keep_sample(self, step: int, text: str) -> None:
        """Writes a sample."""

    def resume_hint(self) -> str:
        """Returns how to resume from an older step, or '' if there is none."""
        return ''


class RunFolder(Nowhere):
    """The workdir of a run."""

    def __init__(
        self,
        workdir: pathlib.Path,
        checkpointer: Checkpointer,
        metrics: MetricsWriter,
        *,
        meta: Mapping[str, Any],
        clock: TrainingClock,
        watch: Callable[[int, Mapping[str, float]], None] = lambda step, row: None,
    ):
        """Wraps what is open in the workdir.

        Args:
          workdir: also holds `samples/`.
          checkpointer: saves the state.
          metrics: writes the rows.
          meta: is stored with each checkpoint.
          clock: counts the seconds of training, which are stored, too.
          watch: is called with each row; an exception ends the training.
        """
        self._workdir, self._checkpointer, self._metrics = workdir, checkpointer, metrics
        self._meta, self._clock, self._watch = meta, clock, watch
        self._norm = jax.jit(optax.tree.norm)
        best = checkpointer.best_step()
        if best is not None:
            self.best_loss = checkpointer.meta(best)['eval_loss']

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self._metrics.write(step, row)
        self._watch(step, row)

    def flush(self) -> None:
        self._metrics.flush()

    def save(self, state: TrainState, step: int, eval_loss: float | None) -> None:
        """Saves a checkpoint.

        Raises:
            Diverged: the weights are not finite.
            UserError: the disk cannot be written.
        """
        if not math.isfinite(float(self._norm(state.params))):
            self.write(step, {DIVERGED: 1.0})
            raise Diverged(
                f'the weights after step {step} are not finite, so they are not saved'
                f'{self.resume_hint()}'
            )
        meta = {**self._meta, 'eval_loss': eval_loss, 'seconds': self._clock.seconds}
        self._checkpointer.save(step, state_items(state), meta, eval_loss=eval_loss)

    def set_loss(self, step: int, eval_loss: float) -> None:
        self._checkpointer.set_loss(step, eval_loss)

    def keep_sample(self, step: int, text: str) -> None:
        if peers.is_primary():
            files.write_text(self._workdir / 'samples' / f'{step}.txt', text + '\n')

    def resume_hint(self) -> str:
        steps = ', '.join(map(str, self._checkpointer.steps()))
        if not steps:
            return ''
        return (
            f'. The same command resumes at the last checkpoint, --resume_step=N at an older one '
            f'(there are {steps})'
        )


def state_items(state: TrainState) -> dict[str, Any]:
    """Returns the state by name, so that weights can be read without the optimizer's state."""
    return {name: getattr(state, name) for name in state.__dataclass_fields__}
