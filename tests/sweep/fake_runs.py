"""Runs that train nothing: the worker of a sweep with a stand-in for the mode `train`."""

import json
import pathlib
import re
import types
from collections.abc import Callable

from gpt_jax.modes import train
from gpt_jax.modes.command import Command
from gpt_jax.sweep import worker
from gpt_jax.sweep.definition import Sweep, Trial
from gpt_jax.sweep.study import SharedStudy

STEPS = 9


class FakeRuns:
    """Replaces runs: `loss(x, step)` is the metric of each step; `before(x, step)` may raise."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.storage = folder, str(folder.with_name('journal.log'))
        self.loss: Callable[[float, int], float] = lambda x, step: x**2 + 1 / step
        self.before: Callable[[float, int], None] = lambda x, step: None
        self.seen: list[tuple[float, int]] = []
        monkeypatch.setattr(worker.main, 'read_command', self._read_command)
        monkeypatch.setattr(train, 'run', self._run)

    def _read_command(self, arguments):
        [x] = re.findall(r'--config\.(?:x|optimizer\.learning_rate)=(\S+)', ' '.join(arguments))
        workdir = pathlib.Path(arguments[arguments.index('--workdir') + 1])
        config = types.SimpleNamespace(train=types.SimpleNamespace(num_steps=STEPS))
        command = Command(
            flags=None,
            config=config,
            workdir=workdir,
            overrides={'x': float(x)},
            evaluators=lambda _: [],
        )
        return train, command

    def _run(self, command) -> int:
        x, path = command.overrides['x'], command.workdir / 'metrics.jsonl'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('')
        for step in range(1, STEPS + 1):
            self.before(x, step)
            self.seen.append((x, step))
            row = {'eval/loss': self.loss(x, step)}
            with path.open('a') as file:
                file.write(json.dumps({'step': step, **row}) + '\n')
            command.watch(step, row)
        return 0

    def share(self, **fields) -> SharedStudy:
        """Opens the study of a sweep over x."""
        storage = fields.pop('storage', self.storage)
        fields = {'name': 'fake', 'config': 'x.py', 'suggest': suggest} | fields
        return SharedStudy(Sweep(**fields), folder=self.folder, storage=storage)

    def sweep(self, trials: int, **fields) -> list:
        """Runs a sweep over x; returns the attempts at its trials."""
        shared = self.share(**fields)
        worker.run_trials(shared, trials=trials, report=lambda: None)
        return shared.attempts()


def suggest(trial) -> Trial:
    return Trial(overrides={'x': trial.suggest_float('x', -1, 1)})
