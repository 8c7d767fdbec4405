"""The commands of docs/sweeps.md, with a stand-in for training."""

import re
import shlex

import pytest

pytest.importorskip('optuna')

from gpt_jax.sweep import __main__, storage
from gpt_jax.sweep.definition import load_sweep
from tests.sweep.fake_runs import FakeRuns
from tests.template import ROOT

PAGE = (ROOT / 'docs/sweeps.md').read_text(encoding='utf-8')
COMMANDS = [
    shlex.split(line)[3:]
    for line in PAGE.replace('\\\n', ' ').splitlines()
    if line.startswith('python -m gpt_jax.sweep ')
]


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_the_commands_run(monkeypatch, tmp_path, capsys, command):
    monkeypatch.chdir(ROOT)
    runs = FakeRuns(monkeypatch, tmp_path / 'sweep')
    monkeypatch.setattr(
        storage, 'choose', lambda spec, name, **_: storage.FileStorage(str(tmp_path / 'log'), name)
    )
    jobs = []  # processes do not see the stand-in
    monkeypatch.setattr(__main__.jobs, 'run_jobs', lambda *_, count, **__: jobs.append(count) or 0)
    assert __main__.main([*command, '--folder', str(runs.folder)]) == 0
    assert jobs == [2] * ('--jobs' in command)
    if not jobs:
        assert 'lr_sensitivity: 8 of 8 trials' in capsys.readouterr().out
        assert (runs.folder / 'results.html').is_file()


def test_there_are_commands():
    assert len(COMMANDS) == 3


def test_the_sweep_file_runs(monkeypatch, tmp_path):
    [text] = re.findall('^```python\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    path = tmp_path / 'sweep.py'
    path.write_text(text)
    sweep = load_sweep(path)
    runs = FakeRuns(monkeypatch, tmp_path / 'runs')
    found = runs.sweep(3, suggest=sweep.suggest)
    assert {str(each.state) for each in found} == {'complete'}
