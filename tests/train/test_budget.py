"""A run with a budget of seconds, and the table of finished runs beside its workdir."""

import json
import shutil
import threading

import pytest

from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.train import results
from gpt_jax.train.training_clock import TrainingClock
from tests.command_line import TINY, fingerprints, rows


def train(workdir, *arguments, steps=12):
    flags = [f'--config.train.num_steps={steps}', '--config.train.log_every=1']
    flags += [
        '--config.train.steps_per_call=1',
        '--config.model.num_layers=1',
        '--config.checkpoint.keep_every=2',
    ]
    return main([f'--config={TINY}', f'--workdir={workdir}', *flags, *arguments])


def table(folder):
    head, *lines = (folder / 'results.tsv').read_text().splitlines()
    return [dict(zip(head.split('\t'), line.split('\t'), strict=True)) for line in lines]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'whole'
    assert train(workdir, '--config.sample.prompt=a\nb') == 0
    return workdir


@pytest.fixture
def seconds_of_a_call(monkeypatch):
    """Makes each call of the device count as two seconds, whatever it takes."""

    class Clock(TrainingClock):
        calls = 0

        @property
        def seconds(self):
            return self._seconds + 2 * self.calls

        def is_over(self):
            self.calls += 1
            return super().is_over()

        def stop(self):
            """Stops nothing."""

    monkeypatch.setattr('gpt_jax.modes.train.TrainingClock', Clock)


def test_the_budget_holds_over_resumes(whole, tmp_path, seconds_of_a_call, capsys):
    workdir = tmp_path / 'limited'
    assert train(workdir, '--config.train.max_seconds=9') == 0
    printed = capsys.readouterr().out
    assert f'complete: 5 steps in {workdir} (config.train.max_seconds is spent)' in printed
    assert [row['step'] for row in rows(workdir) if 'eval/loss' in row] == [5]
    [line] = table(tmp_path)
    assert (line['steps'], line['seconds']) == ('5', '10.0')

    assert train(workdir, '--config.train.max_seconds=9') == 0
    assert 'is complete: 5 steps' in (printed := capsys.readouterr().out)
    assert '--config.train.max_seconds=N' in printed

    assert train(workdir, '--config.train.max_seconds=11') == 0
    assert 'complete: 6 steps' in capsys.readouterr().out
    assert train(workdir) == 0
    assert 'complete: 12 steps' in capsys.readouterr().out
    ours, theirs = ([r for r in rows(each) if 'train/loss' in r] for each in (workdir, whole))
    assert ours == theirs
    assert fingerprints(workdir, 12) == fingerprints(whole, 12)
    [line] = table(tmp_path)
    assert (line['steps'], line['seconds']) == ('12', '24.0')


def test_an_evaluation_that_was_lost_is_made_up_for(tmp_path, seconds_of_a_call, monkeypatch):
    workdir, budget = tmp_path / 'limited', '--config.train.max_seconds=9'
    with monkeypatch.context() as patch:
        patch.setattr('gpt_jax.train.trainer.Trainer.evaluate', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(workdir, budget)
    assert not (tmp_path / 'results.tsv').exists()
    assert train(workdir, budget) == 0
    assert [row['step'] for row in rows(workdir) if 'eval/loss' in row] == [5]
    assert [line['steps'] for line in table(tmp_path)] == ['5']


def test_a_finished_run_has_a_line(whole):
    [line] = table(whole.parent)
    measured = [json.loads(each) for each in (whole / 'metrics.jsonl').read_text().splitlines()]
    evaluated = [row for row in measured if 'eval/loss' in row]
    assert [row['step'] for row in evaluated] == [10, 12]
    assert line['name'] == 'whole' and line['steps'] == '12' and line['tokens'] == str(12 * 8 * 32)
    assert 0 < float(line['seconds']) < 100
    trained = [row['train/loss'] for row in measured if 'train/loss' in row]
    assert line['train_loss'] == f'{trained[-1]:.5g}'
    assert line['eval_loss'] == f'{evaluated[-1]["eval/loss"]:.5g}'
    assert line['best_eval_loss'] == f'{min(row["eval/loss"] for row in evaluated):.5g}'
    assert line['bits_per_byte'] == f'{evaluated[-1]["eval/bits_per_byte"]:.5g}'
    assert int(line['parameters']) > 1000
    assert 'train.num_steps=12' in line['overrides']
    assert "'sample.prompt=a b'" in line['overrides']


def test_a_resume_replaces_its_line_and_keeps_the_overrides(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / 'one')
    for name in ('one', 'other'):
        results.record(tmp_path, {'name': name, 'steps': '12'})
    assert main([f'--workdir={tmp_path / "one"}', '--config.train.num_steps=13']) == 0
    assert [(line['name'], line['steps']) for line in table(tmp_path)] == [
        ('other', '12'),
        ('one', '13'),
    ]
    overrides = table(tmp_path)[1]['overrides']
    assert 'train.num_steps=13' in overrides and 'model.num_layers=1' in overrides
    assert 'warning' not in capsys.readouterr().out


def test_runs_that_end_together_all_get_a_line(tmp_path):
    names = [f'run-{i}' for i in range(24)]
    threads = [
        threading.Thread(target=results.record, args=(tmp_path, {'name': name})) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line['name'] for line in table(tmp_path)) == sorted(names)


def test_columns_of_another_version_are_kept(tmp_path):
    (tmp_path / 'results.tsv').write_text('name\tsteps\tcolour\na\t3\tred\nb\t4\n')
    results.record(tmp_path, {'name': 'c', 'steps': '5'})
    assert [(line['name'], line['steps'], line['colour']) for line in table(tmp_path)] == [
        ('a', '3', 'red'),
        ('b', '4', ''),
        ('c', '5', ''),
    ]


def test_the_table_of_another_program_is_left_alone(tmp_path, whole, capsys):
    (tmp_path / 'results.tsv').write_text('1\t2\n')
    with pytest.raises(UserError, match='is not a table of runs; move it elsewhere'):
        results.record(tmp_path, {'name': 'c'})
    shutil.copytree(whole, tmp_path / 'mine')
    assert train(tmp_path / 'mine', steps=13) == 0
    assert 'warning: no line in results.tsv: ' in capsys.readouterr().out
    assert (tmp_path / 'results.tsv').read_text() == '1\t2\n'
