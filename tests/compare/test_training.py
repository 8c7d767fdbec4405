"""Sides that are trained: their plans, and the whole command on runs of a second."""

import json
import os

import pytest

from gpt_jax.compare.__main__ import main
from gpt_jax.compare.sides import plan_sides
from gpt_jax.errors import UserError
from gpt_jax.modes import train
from tests.command_line import fingerprints, rows, run
from tests.compare.written_runs import write_runs

TINY = 'tests/tiny_config.py'
RUN = 'tests/sweep/tiny_run.py'


def plan(tmp_path, *texts, config=TINY, overrides=(), seeds=2):
    return plan_sides(texts, config=config, overrides=overrides, seeds=seeds, root=tmp_path)


def test_plans_of_sides(tmp_path):
    texts = (f'{TINY}:muon', 'a=', "b=--config.seed=7 --config.sample.prompt='a b'")
    muon, a, b = plan(tmp_path, *texts, overrides=['--config.train.num_steps=9'])
    assert [each.name for each in (muon, a, b)] == ['tiny_config-muon', 'a', 'b']
    assert [each.workdir for each in b.runs] == [tmp_path / 'b/seed_7', tmp_path / 'b/seed_8']
    assert muon.runs[1].command_line() == (
        f'python -m gpt_jax.main --config {TINY}:muon --config.train.num_steps=9 '
        f'--config.seed=1 --workdir {tmp_path}/tiny_config-muon/seed_1'
    )
    assert (b.config.sample.prompt, b.config.train.num_steps) == ('a b', 9)
    assert b.runs[0].arguments[-3:] == ('--config.seed=7', '--workdir', f'{tmp_path}/b/seed_7')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('b', 'b is no config file (FILE.py) and no folder of runs'),
        ('b=x.py', '--config=x.py: no such file'),
        (f'{TINY}:adam', 'unknown variant :adam'),
        ('b=--config.model.d_modl=3', 'side b: config.model.d_modl is not a key; did you mean'),
        ('b=--config.model.d_model=7', 'side b: config.model.d_model=7'),
        ('b=--workdir=x', ': --workdir=x is not a --config.KEY=VALUE; remove it'),
        ('b=--config.sample.prompt="', 'No closing quotation'),
        ('a=--config.seed=3', 'two sides are called a; write NAME=…'),
        ('b=--config.seed=4294967295', 'side b: config.seed=4294967296 must be'),
        ('b=--config.train.sinks=tensorboard', 'side b: needs jsonl in config.train.sinks'),
        ('..=', '..= is no config file'),
        ('b=learning_rate=3', 'learning_rate=3 is no config file'),
    ],
)
def test_wrong_sides(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        plan(tmp_path, 'a=', text)
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'the following arguments are required: SIDE (see --help)'),
        (['a='], 'name at least two sides'),
        (['a=', 'b='], "side 'a=' has no config; give --config FILE.py[:variant]"),
        (['a=', 'b=', '--config', TINY, '--seeds=0'], '--seeds=0 must be at least 1'),
        (['a=', 'b=', '--config', TINY, '--margin=nan'], '--margin=nan must be above 0'),
        (['a=', 'b=', '--config', TINY, '--target=inf'], '--target=inf must be a number'),
        (['a=', 'b=', '--config', TINY, '--root='], '--root needs a folder'),
        (['a=', 'b=', '--config', TINY, '--plot=a.svg'], '--plot=a.svg must end in .png'),
        (['a=', 'b=', '--config', TINY, '--sead=1'], 'unrecognized arguments: --sead=1'),
        (['a=', 'b=--config.data.split=tail:0.1', '--config', TINY], 'different config.data.split'),
        (['a=', 'b=--config.train.batch_size=4', '--config', TINY], 'config.eval.batch_size (8 an'),
    ],
)
def test_wrong_command_lines(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and error.count('\n') == 1


def test_flags_for_runs_that_are_finished(tmp_path, capsys):
    for name in 'ab':
        write_runs(tmp_path / name)
    sides = [str(tmp_path / name) for name in 'ab']
    assert main([*sides, '--config.seed=1']) == 2
    assert 'all sides are finished runs; remove --config.seed=1' in capsys.readouterr().err


def test_finished_runs_are_not_trained_again(tmp_path, monkeypatch, capsys):
    write_runs(tmp_path / 'a', diverged=[2])
    write_runs(tmp_path / 'b', learning_rate=2e-3)
    trained = []
    monkeypatch.setattr(train, 'run', lambda command: trained.append(command.workdir) or 0)
    sides = ['a=--config.optimizer.learning_rate=1e-3', 'b=--config.optimizer.learning_rate=2e-3']
    command = [*sides, '--config', TINY, '--root', str(tmp_path)]
    assert main(command) == 0 and not trained
    # Of six seeds one is missing, of each side; the runs alternate between the sides.
    assert main([*command, '--seeds=6']) == 2
    assert trained == [tmp_path / 'a/seed_5', tmp_path / 'b/seed_5']
    assert main([*command, '--config.train.clip_norm=2']) == 2
    error = capsys.readouterr().err
    assert 'a/seed_0 was trained with another config (config.train.clip_norm: 1.0 -> 2.0)' in error


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_its_runs_equal_plain_ones(
    tmp_path, monkeypatch, capfd
):
    root = tmp_path / 'root'
    bad = 'bad=--config.optimizer.learning_rate=1e30'
    command = ['good=', 'same=', bad, '--config', RUN, '--root', str(root), '--seeds=1']
    command += ['--out', str(tmp_path / 'out.json')]
    fault = tmp_path / 'fault'
    fault.touch()
    monkeypatch.setenv('FAULT', str(fault))
    monkeypatch.setenv('FAULT_SIGNAL', 'SIGINT')
    assert main(command) == 130
    assert 'the same command goes on' in capfd.readouterr().out
    assert os.listdir(root) == ['good']

    assert main(command) == 0
    output = capfd.readouterr().out
    assert 'resuming at step 1' in output and 'run 3 of 3: bad, seed 0; all done in 0:0' in output
    verdicts = {
        each['name']: each['verdict']
        for each in json.loads((tmp_path / 'out.json').read_text())['comparisons']
    }
    assert verdicts == {'same': 'identical', 'bad': 'diverged'}
    line = next(each for each in output.splitlines() if f'{root}/same/seed_0' in each)
    run(*line.split()[3:-1], str(tmp_path / 'plain'))
    workdir = root / 'same/seed_0'
    assert fingerprints(workdir, 20) == fingerprints(tmp_path / 'plain', 20)
    assert rows(workdir) == rows(tmp_path / 'plain') == rows(root / 'good/seed_0')

    assert main(command) == 0
    assert 'run 1' not in capfd.readouterr().out


@pytest.mark.slow
def test_members_of_a_comparison_equal_plain_runs(tmp_path, capfd):
    sides = ['a=', 'b=--config.optimizer.learning_rate=2e-3', 'c=--config.model.d_model=16']
    command = [*sides, '--config', RUN, '--seeds=2']
    for members in ('1', '6'):
        root = str(tmp_path / members)
        assert main([*command, '--root', root, '--members', members]) == 0
    output = capfd.readouterr().out
    assert 'train 4 members' in output and 'train 2 members' in output
    assert 'run 4 of 6 together: b, seed 1; all done in ' in output
    for name in ('a/seed_0', 'b/seed_1', 'c/seed_1'):
        ours, theirs = rows(tmp_path / '6' / name), rows(tmp_path / '1' / name)
        assert len(ours) == len(theirs)
        for row, expected in zip(ours, theirs, strict=True):
            assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
