"""Sweeps of real runs as a user starts them, and what stops them."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest

from tests.command_line import fingerprints, rows, run
from tests.template import Command

pytest.importorskip('optuna')

from gpt_jax.sweep.definition import load_sweep
from gpt_jax.sweep.jobs import run_jobs
from gpt_jax.sweep.study import SharedStudy

SWEEP = 'tests/sweep/tiny_sweep.py'


def start(folder: pathlib.Path, *arguments: str, **environment: str) -> Command:
    """Starts the sweep in a process of its own."""
    return Command(
        *(SWEEP, '--folder', str(folder), *arguments),
        environment=os.environ | environment,
        module='gpt_jax.sweep.__main__',
    )


def sweep(folder: pathlib.Path, *arguments: str, status: int = 0, **environment: str) -> str:
    """Runs the sweep to its end; returns what it prints."""
    with start(folder, *arguments, **environment) as command:
        command.wait(300)
        assert command.returncode == status, command.output()
        return command.output()


def results(folder: pathlib.Path) -> dict:
    return json.loads((folder / 'results.json').read_text(encoding='utf-8'))


@pytest.fixture
def fault(tmp_path) -> dict[str, str]:
    """Environment that ends the first process which comes to step 10."""
    path = tmp_path / 'fault'
    path.touch()
    return {'FAULT': str(path)}


@pytest.mark.slow
@pytest.mark.parametrize('storage', ['sqlite', 'journal'])
def test_a_killed_trial_goes_on_and_equals_the_plain_command(tmp_path, fault, storage):
    folder = tmp_path / 'sweep'
    given = [] if storage == 'sqlite' else ['--storage', str(tmp_path / 'journal.log')]
    sweep(folder, *given, status=-9, **fault)
    output = sweep(folder, *given, **fault)
    assert 'resuming at step 5' in output or 'resuming at step 10' in output
    found = results(folder)
    assert [record['trial'] for record in found['trials']] == [0, 2, 3]  # 1 is the second attempt
    assert [record['params']['seed'] for record in found['trials']] == [3, 4, 5]
    assert [record['attempts'] for record in found['trials']] == [2, 1, 1]
    assert {record['state'] for record in found['trials']} == {'complete'}
    assert [*found['trials'][0]['curve']] == ['5', '10', '15', '20']
    workdirs = [path.name for path in (folder / 'trials').iterdir() if path.is_dir()]
    assert sorted(workdirs) == ['0', '2', '3']
    assert '3 of 3 trials' in output

    again = sweep(folder, *given)
    assert 'trial 0: ' not in again, 'a finished trial runs again'

    if storage == 'sqlite':
        command = shlex.split(found['trials'][0]['command'])
        assert command[:3] == ['python', '-m', 'gpt_jax.main']
        workdir, plain = folder / 'trials/0', tmp_path / 'plain'
        run(*command[3:], '--workdir', str(plain))
        assert fingerprints(workdir, 20) == fingerprints(plain, 20)
        assert rows(workdir) == rows(plain)
        assert found['trials'][0]['value'] == rows(plain)[-1]['eval/loss']


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'status'), [('SIGINT', 130), ('SIGTERM', 75)])
def test_a_stop_signal_loses_nothing(tmp_path, fault, name, status):
    folder = tmp_path / 'sweep'
    output = sweep(folder, status=status, FAULT_SIGNAL=name, **fault)
    assert 'the same command goes on' in output
    assert [record['state'] for record in results(folder)['trials']][0] == 'interrupted'
    assert 'resuming at step 1' in sweep(folder)
    assert [record['attempts'] for record in results(folder)['trials']] == [2, 1, 1]


def processes_of(folder: pathlib.Path) -> list[str]:
    """Returns the command lines of processes with this folder as an argument."""
    ps = subprocess.run(['ps', '-ww', '-eo', 'args'], check=True, stdout=subprocess.PIPE, text=True)
    return [line for line in ps.stdout.splitlines() if f'--folder {folder}' in line]


@pytest.mark.slow
def test_jobs_share_the_trials_outlive_a_killed_one_and_end_with_ctrl_c(tmp_path, fault):
    folder, hold = tmp_path / 'sweep', tmp_path / 'hold'
    hold.touch()
    with start(folder, '--jobs', '2', HOLD=str(hold)) as command:
        while sum(path.stat().st_size > 0 for path in folder.glob('trials/*/metrics.jsonl')) < 2:
            assert command.poll() is None, command.output()
            time.sleep(0.1)
        assert len(processes_of(folder)) == 2
        command.send_signal(signal.SIGINT)
        hold.unlink()
        command.wait(120)
        assert command.returncode == 130 and 'the same command goes on' in command.output()
    assert not processes_of(folder)
    (tmp_path / 'fault').touch()
    output = sweep(folder, '--jobs', '2', **fault)
    assert 'a process ended with status -9' in output
    found = results(folder)['trials']
    assert sorted(record['params']['seed'] for record in found) == [3, 4, 5]
    assert {record['state'] for record in found} == {'complete'}
    assert sum(record['attempts'] for record in found) > 3


@pytest.mark.slow
def test_jobs_end_with_an_error_of_the_parent(tmp_path):
    folder = tmp_path / 'sweep'
    shared = SharedStudy(load_sweep(pathlib.Path(SWEEP)), folder=folder)

    def fail():
        raise OSError('the disk is full')

    with pytest.raises(OSError, match='the disk is full'):
        run_jobs([SWEEP, '--folder', str(folder)], count=1, shared=shared, report=fail)
    assert not processes_of(folder)


@pytest.mark.slow
def test_members_are_killed_and_pruned_and_equal_their_own_runs(tmp_path, fault):
    alone, together = tmp_path / 'alone', tmp_path / 'together'
    sweep(alone)
    worst = max(record['curve']['15'] for record in results(alone)['trials'])
    flags, prune = ['--members', '3'], {'PRUNE_ABOVE': f'{worst - 1e-4}', 'PRUNE_AFTER': '15'}
    sweep(together, *flags, status=-9, **prune, **fault)
    output = sweep(together, *flags, **prune)
    assert 'resuming at step' in output and 'train 3 members' in output
    found, expected = results(together)['trials'], results(alone)['trials']
    assert [record['attempts'] for record in found] == [2, 2, 2]
    for record, own in zip(found, expected, strict=True):
        assert record['params'] == own['params']
        pruned = own['curve']['15'] == worst
        assert record['state'] == ('pruned' if pruned else 'complete')
        values = dict(list(own['curve'].items())[: 3 if pruned else 4])
        assert record['curve'] == pytest.approx(values, rel=1e-5)
        assert record['value'] == (None if pruned else pytest.approx(own['value'], rel=1e-5))


@pytest.mark.slow
def test_a_pruned_trial_ends_at_once(tmp_path):
    folder = tmp_path / 'sweep'
    sweep(folder, PRUNE_ABOVE='0.1')
    found = results(folder)
    assert [record['state'] for record in found['trials']] == ['pruned'] * 3
    assert [[*record['curve']] for record in found['trials']] == [['5']] * 3
    assert rows(folder / 'trials/0')[-1]['step'] == 5
    assert found['best'] is None
