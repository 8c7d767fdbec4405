"""The trainer's loop without a model: what it measures, and in which order things happen."""

import contextlib
import dataclasses
import itertools
import time
import types

import numpy as np
import pytest

from gpt_jax.config import finalize
from gpt_jax.errors import UserError
from gpt_jax.telemetry.progress import Progress
from gpt_jax.train.evaluators import Evaluator, Report
from gpt_jax.train.run_folder import Nowhere
from gpt_jax.train.trainer import Outcome, Trainer
from gpt_jax.train.training_clock import TrainingClock
from tests.tiny_config import get_config


class _Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self, monkeypatch):
        self.now, self.done = 0.0, 0
        monkeypatch.setattr(time, 'perf_counter', lambda: self.now)

    def spend(self, seconds: float) -> None:
        self.now += seconds


@dataclasses.dataclass
class _State:
    step: int


class _OnDevice:
    """Metrics of a call; whoever reads them waits until its steps are done, a second each."""

    def __init__(self, clock: _Clock, count: int):
        self._clock, self._count = clock, count

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self._clock.spend(self._count)
        return np.zeros(self._count)


def _run(
    monkeypatch,
    *,
    bad_from=99,
    stop_at=99,
    first=False,
    call_length=None,
    at_end=True,
    compilation=0.0,
    **train,
) -> tuple[list[str], dict[int, dict[str, float]]]:
    """Returns the events of 20 steps of a second, and their rows; all between takes a hundred."""
    config = get_config()
    config.sample.at_end = True
    config.train.num_steps, config.train.log_every = 20, 4
    config.eval.every = config.sample.every = config.checkpoint.save_every = 10
    for name, value in train.items():
        setattr(config.train, name, value)
    config = finalize(config, vocab_size=60)
    clock, happened, rows = _Clock(monkeypatch), [], {}

    def advance(state, call):
        clock.spend(0.0 if clock.done else compilation)
        done = np.arange(state.step, state.step + len(call)) + 1
        clock.done = int(done[-1])
        metrics = {
            'loss': done.astype(float),
            'accuracy': _OnDevice(clock, len(call)),
            'bad_steps': np.maximum(0, done - bad_from + 1),
        }
        return _State(clock.done), metrics

    paused = []

    @contextlib.contextmanager
    def pause():
        paused.append(True)
        yield
        paused.pop()

    def take(name, result=None):
        assert paused, f'{name} would count as a stall'
        clock.spend(100)
        happened.append(name)
        return result

    program = types.SimpleNamespace(
        call_length=call_length or (lambda done, num_steps: config.train.steps_per_call or 1),
        advance=advance,
    )

    class Folder(Nowhere):
        """Notes what it is asked to keep."""

        def write(self, step, row):
            rows.setdefault(step, {}).update(row)

        def save(self, state, step, eval_loss):
            take(f'save {step}')

        def set_loss(self, step, eval_loss):
            take(f'set_loss {step}')

        def keep_sample(self, step, text):
            take(f'keep {step}')

        def resume_hint(self):
            return ' (back)'

    def evaluate(trainer, state):
        take(f'evaluate {state.step}')
        return Report({'eval/loss': 1.0}, loss=1.0)

    def sample(trainer, state):
        take(f'sample {state.step}')
        return Report(sample='text')

    trainer = Trainer.__new__(Trainer)  # without data and model
    trainer.config, trainer.program, trainer.state = config, program, _State(0)
    trainer.pipeline = types.SimpleNamespace(batches=lambda step: itertools.repeat({}))
    trainer.throughput = lambda rate: {}
    every = {'every': 10, 'at_end': at_end}
    trainer.evaluators = [
        Evaluator(name='loss', run=evaluate, at_start=True, before_save=True, **every),
        Evaluator(name='sample', run=sample, **every),
    ]
    with Progress(20, unit='steps', description='train', start=0, quiet=True) as progress:
        try:
            outcome = trainer.train(
                first_batch=0,
                clock=TrainingClock(budget=config.train.max_seconds),
                progress=progress,
                folder=Folder(),
                watchdog=types.SimpleNamespace(patient=pause, beat=lambda: None),
                stop=lambda: clock.done >= stop_at,
                evaluate_first=first,
            )
        except UserError as error:
            outcome = str(error)
    happened.append(outcome)
    return happened, rows


def test_speed_is_that_of_the_steps(monkeypatch):
    """Also where an evaluation lies between two rows."""
    for steps_per_call in (1, 2):
        _, rows = _run(monkeypatch, steps_per_call=steps_per_call)
        assert [step for step in rows if 'train/loss' in rows[step]] == [4, 8, 12, 16, 20]
        for row in (row for row in rows.values() if 'train/loss' in row):
            assert row['train/tokens_per_second'] == 8 * 32, row


def test_what_follows_the_last_step_cannot_cost_its_checkpoint(monkeypatch):
    happened, _ = _run(monkeypatch)
    assert happened == [
        *('evaluate 10', 'save 10', 'sample 10', 'keep 10'),
        *('save 20', 'evaluate 20', 'set_loss 20', 'sample 20', 'keep 20'),
        Outcome.COMPLETE,
    ]


def test_evaluators_at_the_end_can_be_turned_off(monkeypatch):
    happened, _ = _run(monkeypatch, at_end=False)
    # Steps 10 and 20 are due by their interval.
    assert 'evaluate 20' in happened
    happened, _ = _run(monkeypatch, at_end=False, num_steps=15)
    assert happened == [
        *('evaluate 10', 'save 10', 'sample 10', 'keep 10', 'save 15'),
        Outcome.COMPLETE,
    ]


def test_a_stop_saves_at_once_and_the_evaluation_is_made_up_for(monkeypatch):
    happened, _ = _run(monkeypatch, stop_at=10)
    assert happened == ['save 10', Outcome.STOPPED]
    happened, rows = _run(monkeypatch, first=True, stop_at=5)
    assert happened == ['evaluate 0', 'save 5', Outcome.STOPPED]
    assert 'eval/loss' in rows[0]


@pytest.mark.parametrize(('bad_from', 'step'), [(19, 20), (3, 13)])
def test_a_run_whose_last_steps_were_skipped_is_not_complete(monkeypatch, bad_from, step):
    happened, _ = _run(monkeypatch, bad_from=bad_from)
    assert f'steps in a row up to step {step} ' in happened[-1]
    assert happened[-1].endswith('(back)')
    assert f'save {step}' not in happened
    assert _run(monkeypatch, bad_from=20)[0][-1] is Outcome.COMPLETE  # one bad batch


def test_the_loss_of_a_row_is_the_mean_since_the_row_before(monkeypatch):
    for steps_per_call in (1, 10):
        _, rows = _run(monkeypatch, steps_per_call=steps_per_call)
        losses = {step: row['train/loss'] for step, row in rows.items() if 'train/loss' in row}
        assert losses == {4: 2.5, 8: 6.5, 12: 10.5, 16: 14.5, 20: 18.5}


def test_steps_that_are_left_over_are_another_program(monkeypatch):
    """Two calls of 8 steps and 4 of one, whose program is compiled after the row of step 16."""
    happened, rows = _run(monkeypatch, call_length=lambda done, _: 8 if done < 16 else 1)
    assert happened[-1] is Outcome.COMPLETE
    assert rows[16]['train/tokens_per_second'] > 0 and 'train/loss' in rows[20]


def test_a_budget_of_seconds_ends_a_run_as_its_last_step_does(monkeypatch):
    """A second a step; compilation and the hundred of an evaluation or a save do not count."""
    happened, _ = _run(monkeypatch, max_seconds=14.0, compilation=50.0)
    assert happened == [
        *('evaluate 10', 'save 10', 'sample 10', 'keep 10'),
        # The metrics of a call are read, and so its seconds known, one call later.
        *('save 15', 'evaluate 15', 'set_loss 15', 'sample 15', 'keep 15'),
        Outcome.COMPLETE,
    ]
