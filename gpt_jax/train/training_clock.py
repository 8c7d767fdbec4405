"""The seconds that a run has trained, and its budget of them."""

import time

from jax.sharding import Mesh

from gpt_jax.parallel import peers
from gpt_jax.train.agreement import Agreement


class TrainingClock:
    """The seconds that a run has trained, over all its resumes.

    The trainer starts and stops it. It counts reading batches, the steps and their metrics. It
    stands still from the start of the command to the first step, and during compilation,
    evaluations, samples and saving.
    """

    def __init__(self, *, seconds: float = 0.0, budget: float = 0.0, mesh: Mesh | None = None):
        """Begins with the `seconds` of earlier commands.

        Args:
          seconds: so far.
          budget: seconds after which the run ends; 0: no end.
          mesh: of the run, whose processes agree on that end.
        """
        self._seconds, self._budget = seconds, budget
        self._agreement = Agreement(mesh) if mesh and budget else None
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return self._seconds + (0 if self._began is None else time.perf_counter() - self._began)

    def start(self) -> None:
        """Starts the clock, unless it runs."""
        self._began = time.perf_counter() if self._began is None else self._began

    def stop(self) -> None:
        """Stops the clock."""
        self._seconds, self._began = self.seconds, None

    @property
    def is_spent(self) -> bool:
        """True if this process has spent the budget."""
        return 0 < self._budget <= self.seconds

    def is_over(self) -> bool:
        """Returns whether the first process has spent the budget.

        All processes must call it after every device call; they learn of it one call later.
        """
        mine = self.is_spent and peers.is_primary()  # whose seconds checkpoints have
        return bool(self._agreement.maximum(int(mine))) if self._agreement else mine
