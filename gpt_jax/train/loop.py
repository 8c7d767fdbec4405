"""The loop of device calls, and what each of its runs does between two of them."""

import contextlib
import enum
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gpt_jax.errors import Diverged
from gpt_jax.telemetry.progress import Progress
from gpt_jax.train.evaluators import Evaluator, is_due
from gpt_jax.train.recorder import Recorder
from gpt_jax.train.run_folder import DIVERGED, Nowhere
from gpt_jax.train.state import TrainState
from gpt_jax.train.training_clock import TrainingClock
from gpt_jax.train.watchdog import Watchdog

if TYPE_CHECKING:
    from gpt_jax.train.trainer import Trainer


class Outcome(enum.Enum):
    """The ways in which a training ends without an error."""

    COMPLETE = 'complete'
    STOPPED = 'stopped'  # on request; all steps so far are saved


class Lane:
    """One run in the loop: its rows, evaluations, samples and checkpoints."""

    error: Exception | None = None  # ended this run, while other lanes went on

    def __init__(
        self,
        trainer: 'Trainer',
        *,
        state: Callable[[], TrainState],
        clock: TrainingClock,
        folder: Nowhere,
        progress: Progress,
        first: int,
        name: str = '',
    ):
        """Opens a lane at step `first`.

        Args:
          trainer: gives the config, the evaluators and what they measure with.
          state: returns the state after the last call.
          clock: counts the seconds of training.
          folder: takes rows, checkpoints and samples.
          progress: shows the steps; reports are printed above it.
          first: number of steps that the state has taken.
          name: begins the lane's reports, if there are several lanes.
        """
        self.config, self.clock = trainer.config, clock
        self.recorder = Recorder(
            trainer.config,
            write=folder.write,
            throughput=trainer.throughput,
            progress=progress,
            first=first,
        )
        self._trainer, self._state, self._folder, self._progress = trainer, state, folder, progress
        self._prefix = f'{name}: ' if name else ''
        self._deciding = [each for each in trainer.evaluators if each.before_save]
        self._others = [each for each in trainer.evaluators if not each.before_save]

    def is_due_within(self, done: int, count: int) -> bool:
        """Returns whether an evaluator is due between the steps of a call of this length."""
        inside = range(done + 1, done + count)
        evaluators = self._deciding + self._others
        return any(each.is_due(step, last=False) for each in evaluators for step in inside)

    def evaluate_first(self, done: int) -> None:
        """Runs the evaluators that precede a checkpoint on the state that the loop starts with."""
        last = done >= self.config.train.num_steps or self.clock.is_spent
        due = [each for each in self._deciding if each.is_due_first(done, last=last)]
        loss = self._run(due, done)
        if loss is not None:
            self._folder.best_loss = min(self._folder.best_loss, loss)

    def finish_call(
        self,
        done: int,
        *,
        last: bool,
        saving: bool,
        leaving: bool,
        pause: Callable[[], None],
        watchdog: Watchdog,
    ) -> bool:
        """Evaluates and saves what is due after step `done`; returns whether anything was.

        Args:
          done: number of steps so far.
          last: they are all.
          saving: save in any case.
          leaving: save and do nothing else: there may be seconds to save in.
          pause: is called before what is due.
          watchdog: is told to be patient.

        Raises:
            Diverged: too many steps in a row were not finite, or the last ones.
        """
        config, folder = self.config, self._folder
        evaluators = [] if leaving else self._deciding + self._others
        due = [each for each in evaluators if each.is_due(done, last=last)]
        saving = saving or leaving or is_due(config.checkpoint.save_every, done)
        if due or saving:
            self.recorder.read_previous()
        self._check_progress(done, last=last)
        if not (due or saving):
            return False
        pause()
        with watchdog.patient():
            if last or leaving:  # an error in an evaluator must not lose the last checkpoint
                folder.flush()
                folder.save(self._state(), done, None)
            if leaving:
                return True
            loss = self._run([each for each in self._deciding if each in due], done, saved=last)
            if loss is not None and config.checkpoint.keep_best and loss < folder.best_loss:
                folder.best_loss, saving = loss, True
            if saving:
                folder.flush()
            if saving and not last:
                folder.save(self._state(), done, loss)
            self._run([each for each in self._others if each in due], done)
        return True

    def _run(self, evaluators: list[Evaluator], done: int, *, saved: bool = False) -> float | None:
        """Runs evaluators and passes on their reports; returns the last loss in them.

        `saved`: the step has a checkpoint already, which gets the loss.
        """
        loss, progress, folder = None, self._progress, self._folder
        for evaluator in evaluators:
            progress.announce(f'evaluating: {evaluator.name}', log=False)
            try:
                report = evaluator.run(self._trainer, self._state())
            except Exception as error:
                error.add_note(f'in the evaluator {evaluator.name!r}, after step {done}')
                raise
            if report.row:
                folder.write(done, report.row)
            for line in report.lines:
                progress.print(f'{self._prefix}step {done}: {line}')
            if report.sample:
                progress.print(f'--- {self._prefix}sample at step {done}\n{report.sample}\n---')
                folder.keep_sample(done, report.sample)
            if report.loss is not None:
                loss = report.loss
                if saved:
                    folder.flush()
                    folder.set_loss(done, loss)
        progress.announce('', log=False)
        return loss

    def _check_progress(self, step: int, *, last: bool) -> None:
        """Raises Diverged if the last steps were not finite: such a run no longer learns."""
        limit, bad_steps = self.config.train.max_bad_steps, self.recorder.bad_steps
        if last:  # a single bad batch does not spoil the end
            limit = min(limit, 2, self.config.train.num_steps)
        if bad_steps < limit:
            return
        self._folder.write(step, {DIVERGED: 1.0})
        self._folder.flush()
        raise Diverged(
            f'{bad_steps} steps in a row up to step {step} had a loss, gradient or weights that '
            f'are not finite; lower config.optimizer.learning_rate or raise '
            f'config.train.max_bad_steps{self._folder.resume_hint()}'
        )


def _raise(lane: Lane, error: Exception) -> None:
    del lane
    raise error


def run_calls(
    lanes: Sequence[Lane],
    *,
    advance: Callable[[list[list[Any]]], Sequence[dict[str, Any]]],
    streams: Sequence[Iterator[Any]],
    call_length: Callable[[int, int], int],
    first: int,
    progress: Progress,
    watchdog: Watchdog,
    stop: Callable[[], bool],
    until: int | None = None,
    lose: Callable[[Lane, Exception], None] = _raise,
) -> Outcome:
    """Trains lanes of one length together, in calls of one or several steps.

    Metrics of a call are read after the next one is dispatched, so that the device never waits
    for the host. Rows up to a step are on disk before its checkpoint is.

    Args:
      lanes: the runs.
      advance: takes one call of each stream's batches; returns the metrics of each lane.
      streams: the batches from step `first` on.
      call_length: returns the length of the call after a step, in a training to another.
      first: number of steps that the lanes have taken.
      progress: shows the steps.
      watchdog: is told of each call, and to be patient with everything else.
      stop: is polled after each call; True ends the training.
      until: also ends it, after this step, which is saved.
      lose: takes a lane and the error that ends it; the others go on. By default it is raised.
    """
    num_steps = lanes[0].config.train.num_steps
    done, end = first, num_steps if until is None else until
    compiled: set[int] = set()  # lengths of calls
    over = any(lane.clock.is_spent for lane in lanes)

    def going() -> list[tuple[int, Lane]]:
        return [(index, lane) for index, lane in enumerate(lanes) if lane.error is None]

    @contextlib.contextmanager
    def ended_by_errors(lane: Lane) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            lose(lane, error)
            lane.error = error

    def pause() -> None:
        for lane in lanes:
            lane.clock.stop()

    def unpause() -> None:
        for _, lane in going():
            lane.recorder.restart_clock(done)
            lane.clock.start()

    for lane in lanes:
        lane.clock.start()
    while done < end and going() and not over:
        count = call_length(done, end)
        if any(lane.is_due_within(done, count) for _, lane in going()):
            count = 1  # a call ends at the latest where something is due
        began = time.perf_counter()
        calls = [list(itertools.islice(batches, count)) for batches in streams]
        waited = time.perf_counter() - began
        if count not in compiled:
            for _, lane in going():
                with ended_by_errors(lane):
                    lane.recorder.read_previous()  # its speed excludes the compilation
            pause()
            progress.announce('compiling the training step')
        metrics = advance(calls)
        if count not in compiled:  # the call returned after its program was compiled
            compiled.add(count)
            unpause()
        done += count
        for index, lane in going():
            with ended_by_errors(lane):
                lane.recorder.read_previous()
                lane.recorder.remember(done, metrics[index], waited)
        watchdog.beat()
        over = any([lane.clock.is_over() for _, lane in going()])
        last = over or done >= num_steps
        stopping = stop()
        began, paused = time.monotonic(), False
        for _, lane in going():
            with ended_by_errors(lane):
                paused |= lane.finish_call(
                    done,
                    last=last,
                    saving=last or stopping or done == end,
                    leaving=stopping and not last,
                    pause=pause,
                    watchdog=watchdog,
                )
        if stopping and not last:
            return Outcome.STOPPED
        if paused:
            unpause()
            progress.skip(time.monotonic() - began)
    pause()
    return Outcome.COMPLETE if over or done >= num_steps else Outcome.STOPPED
