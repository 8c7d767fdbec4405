"""The loop without a model: what it measures, and in which order things happen."""

import dataclasses
import itertools
import math
import time
import types

import numpy as np

from gpt_jax.config import finalize
from gpt_jax.evaluate import Evaluation
from gpt_jax.telemetry.progress import Progress
from gpt_jax.train import loop
from tests.tiny_config import get_config


class _Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
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


def _run(monkeypatch, **train) -> tuple[list[str], dict[int, dict[str, float]]]:
    """What 20 steps write, each of a second; everything between them takes a hundred."""
    config = get_config()
    config.train.num_steps, config.train.log_every = 20, 4
    config.eval.every = config.sample.every = config.checkpoint.save_every = 10
    for name, value in train.items():
        setattr(config.train, name, value)
    config = finalize(config, vocab_size=60)
    clock, happened, rows = _Clock(monkeypatch), [], {}

    def advance(state, call):
        metrics = {'loss': _OnDevice(clock, len(call)), 'bad_steps': np.zeros(len(call))}
        return _State(state.step + len(call)), metrics

    def take(name, result=None):
        clock.spend(100)
        happened.append(name)
        return result

    program = types.SimpleNamespace(
        call_length=lambda done, num_steps: config.train.steps_per_call or 1, advance=advance
    )
    hooks = loop.Hooks(
        evaluate=lambda state: take(
            f'evaluate {state.step}', {'eval': Evaluation(1.0, math.e, None, 0.5, 1)}
        ),
        throughput=lambda rate: {},
        sample=lambda state: take(f'sample {state.step}', ''),
        save=lambda state, step, loss: take(f'save {step}'),
        write=lambda step, row: rows.setdefault(step, {}).update(row),
    )
    progress = Progress(20, unit='steps', description='train', start=0, quiet=True)
    batches = itertools.repeat({})
    with progress:
        loop.run(program, config, state=_State(0), batches=batches, hooks=hooks, progress=progress)
    return happened, rows


def test_speed_is_that_of_the_steps(monkeypatch):
    """Also where an evaluation lies between two rows."""
    for steps_per_call in (1, 2):
        _, rows = _run(monkeypatch, steps_per_call=steps_per_call)
        assert [step for step in rows if 'train/loss' in rows[step]] == [4, 8, 12, 16, 20]
        for row in (row for row in rows.values() if 'train/loss' in row):
            assert row['train/tokens_per_second'] == 8 * 32, row


def test_a_sample_cannot_cost_a_checkpoint(monkeypatch):
    happened, _ = _run(monkeypatch)
    names = ('evaluate', 'save', 'sample')
    assert happened == [f'{name} {step}' for step, name in itertools.product((10, 20), names)]
