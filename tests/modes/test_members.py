"""Members leave their workdirs as their own runs would."""

import json
import shutil
import signal
import types

import pytest

from gpt_jax import run as runs
from gpt_jax.checkpoint.manifest import list_steps
from gpt_jax.config import finalize
from gpt_jax.config_tree import set_value
from gpt_jax.errors import UserError
from gpt_jax.modes import members, train
from gpt_jax.modes.command import Command
from gpt_jax.modes.members import check_members, count_members, group, train_group, train_members
from gpt_jax.train.evaluators import Evaluator, Report
from tests.command_line import TIMED
from tests.tiny_config import get_config

SMALL = {
    'model.num_layers': 1,
    'model.d_model': 16,
    'model.use_bias': False,
    'train.grad_accumulation': 1,
    'train.sinks': ('jsonl',),
    'train.max_bad_steps': 3,
    'schedule.decay_steps': 30,
}
KNOBS = {
    'plain': {},
    'decay': {'optimizer.weight_decay': 1.0, 'optimizer.learning_rate': 3e-3},
    'seed': {'seed': 7},
}


def command_of(workdir, *, num_steps=30, evaluators=(), **changes):
    config = get_config()
    overrides = {**SMALL, 'train.num_steps': num_steps, **KNOBS.get(workdir.name, {}), **changes}
    for key, value in overrides.items():
        set_value(config, key, value)
    return Command(
        flags=types.SimpleNamespace(fresh=False, resume_step=None),
        config=config,
        workdir=workdir,
        overrides=overrides,
        evaluators=lambda config: evaluators,
    )


def rows_of(workdir):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    rows = {}
    for row in map(json.loads, lines):
        values = {name: value for name, value in row.items() if name not in TIMED | {'time'}}
        rows.setdefault(row['step'], {}).update(values)
    return rows


def stop(trainer, state):
    signal.raise_signal(signal.SIGTERM)
    return Report()


def test_members_leave_what_their_own_runs_leave(tmp_path, capsys):
    """One diverges, a signal stops the others, one loses its last checkpoint, and they go on."""
    together, alone = tmp_path / 'together', tmp_path / 'alone'
    for name in KNOBS:
        assert train.run(command_of(alone / name)) == 0

    folders = [together / name for name in [*KNOBS, 'bad']]
    commands = [command_of(each) for each in folders]
    commands[0] = command_of(folders[0], evaluators=[Evaluator(name='stop', every=10, run=stop)])
    commands[-1] = command_of(folders[-1], **{'optimizer.learning_rate': 1e38})
    *ends, error = train_members(commands)
    assert ends == [train.UNFINISHED] * 3
    assert isinstance(error, UserError) and '10 steps in a row' in str(error)
    assert 'bad ends: 10 steps in a row' in capsys.readouterr().out
    assert not list_steps(folders[-1] / runs.CHECKPOINTS)
    assert max(rows_of(folders[-1])) == 10 and 'eval/loss' not in rows_of(folders[-1])[10]

    shutil.rmtree(together / 'plain' / runs.CHECKPOINTS / '20')
    assert train_members([command_of(each) for each in folders[:3]]) == [0] * 3
    for name in KNOBS:
        ours, theirs = together / name, alone / name
        assert runs.read_config(ours) == runs.read_config(theirs)
        assert {each.name for each in ours.iterdir()} == {each.name for each in theirs.iterdir()}
        steps = [list_steps(each / runs.CHECKPOINTS) for each in (ours, theirs)]
        assert steps[0] == steps[1] and 30 in steps[0]
        rows, expected = rows_of(ours), rows_of(theirs)
        assert rows.keys() == expected.keys()
        for step, row in rows.items():
            assert row == pytest.approx(expected[step], rel=1e-5, abs=1e-5), step
    assert rows_of(together / 'plain') != rows_of(together / 'decay')
    assert train.run(command_of(together / 'seed')) == 0
    assert 'is complete: 30 steps' in capsys.readouterr().out
    assert train.run(command_of(together / 'seed', num_steps=32)) == 0
    assert 'resuming at step 30' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('model.num_layers', 2),
        ('train.num_steps', 31),
        ('train.z_loss', 1e-4),
        ('schedule.kind', 'linear'),
        ('optimizer.weight_decay', 0.0),  # turns a part of the step off
        ('data.segment_ids', True),
    ],
)
def test_what_is_no_number_is_named(tmp_path, key, value):
    configs = [
        finalize(each.config, vocab_size=60)
        for each in (command_of(tmp_path), command_of(tmp_path, **{key: value}))
    ]
    with pytest.raises(UserError, match=f'^config.{key} is '):
        check_members(configs)


def test_groups_are_of_runs_that_differ_in_numbers_only(tmp_path):
    changes = [{}, {'model.num_layers': 2}, {'seed': 3}, {'model.num_layers': 7.5}, {'seed': 4}]
    changes += [{'optimizer.beta1': 0.8}, {'model.num_layers': 2, 'schedule.warmup_steps': 2}]
    commands = [command_of(tmp_path, **each) for each in changes]
    assert group(commands, most=4) == [[0, 2, 4, 5], [1, 6], [3]]
    assert group(commands, most=3) == [[0, 2, 4], [1, 6], [3], [5]]
    assert group(commands, most=1) == [[index] for index in range(7)]


def test_members_that_fail_together_train_alone(tmp_path, monkeypatch, capsys):
    def fail(commands):
        raise RuntimeError('no memory')

    monkeypatch.setattr(members, 'train_members', fail)
    error = UserError('wrong')
    ends = iter([0, error, train.INTERRUPTED])

    def run(command):
        end = next(ends)
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(train, 'run', run)
    commands = [command_of(tmp_path, seed=seed) for seed in range(4)]
    assert train_group(commands) == [0, error, train.INTERRUPTED, train.INTERRUPTED]
    assert '4 members failed, so they train alone: no memory' in capsys.readouterr().out


def test_members_are_taken_where_they_pay(monkeypatch):
    assert (count_members('auto'), count_members('3')) == (1, 3)
    monkeypatch.setitem(members.FACTORS, 'cpu', 2.0)
    assert count_members('auto') == 8
    for wrong in ('0', 'many', '-1', ''):
        with pytest.raises(UserError, match=f'--members={wrong} must be auto or a number from 1'):
            count_members(wrong)
