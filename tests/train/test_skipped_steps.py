"""Runs whose batches are partly left out, from the start or from a resume on."""

import shutil

import pytest

from gpt_jax.main import main
from tests.command_line import TINY, fingerprints, rows

SMALL = [
    f'--config={TINY}',
    *(f'--config.{each}' for each in ('model.num_layers=1', 'train.num_steps=8')),
    *(f'--config.{each}' for each in ('checkpoint.save_every=2', 'checkpoint.keep_last=9')),
    *(f'--config.{each}' for each in ('eval.every=0', 'eval.at_end=false', 'train.log_every=1')),
]


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    """Trains in the folder of a name, at first a copy of another run; returns its path."""
    folder = tmp_path_factory.mktemp('skipped')

    def run(name, *arguments, copied=None, status=0):
        workdir = folder / name
        if copied:
            shutil.copytree(copied, workdir)
        assert main([*SMALL, f'--workdir={workdir}', *arguments]) == status
        return workdir

    return run


@pytest.fixture(scope='module')
def plain(train):
    return train('plain')


@pytest.fixture(scope='module')
def without(train):
    return train('without', '--config.data.skip_steps=5-6,8')


def test_steps_before_are_the_same_and_later_ones_are_not(plain, without):
    assert rows(plain)[:4] == rows(without)[:4]
    assert all(one != other for one, other in zip(rows(plain)[4:], rows(without)[4:], strict=True))


def test_going_back_and_leaving_out_is_as_leaving_out_from_the_start(train, plain, without, capsys):
    flags = ['--resume_step=4', '--config.data.skip_steps=5-6,8']
    workdir = train('back', *flags, copied=plain)
    printed = capsys.readouterr().out
    assert 'resuming at step 4' in printed and 'data.skip_steps' in printed
    assert rows(workdir) == rows(without)
    assert fingerprints(workdir, 8) == fingerprints(without, 8)


def test_batches_that_were_taken_cannot_be_left_out(train, plain, capsys):
    for arguments, hint in (
        (['--config.data.skip_steps=5'], 'go back with --resume_step=4'),
        (['--config.data.skip_steps=5', '--resume_step=6'], 'go back with --resume_step=4'),
        (['--config.data.skip_steps=1'], 'start over with --fresh'),
    ):
        train(plain.name, *arguments, status=2)
        [line] = capsys.readouterr().err.strip().splitlines()
        assert line.startswith('error: config.data.skip_steps: the checkpoint of step ')
        assert line.endswith(hint)
    assert sorted(int(each.name) for each in (plain / 'checkpoints').iterdir()) == [2, 4, 6, 8]


def test_later_batches_may_be_left_out_or_taken_again_on_a_resume(train, without, capsys):
    workdir = train('longer', '--config.data.skip_steps=5-6,8,20', copied=without)
    train('longer', '--config.data.skip_steps=5-6,8', '--config.train.num_steps=9')
    assert 'resuming at step 8' in capsys.readouterr().out
    assert rows(workdir)[:8] == rows(without)
    # Step 9 took batch 12.
    train('longer', '--config.data.skip_steps=5-6,8,12', '--config.train.num_steps=10', status=2)
    capsys.readouterr()
