"""Mistakes of a user: one line each, exit status 2, and no trial is lost."""

import re

import pytest

pytest.importorskip('optuna')

from gpt_jax.sweep.__main__ import main

FILE = """
from gpt_jax.sweep.definition import Sweep, Trial

def suggest(trial):
    return Trial({variant!r}, {overrides})

sweep = Sweep(config={config!r}, suggest=suggest, trials=2)
"""


def write(folder, *, config='tests/sweep/tiny_run.py', variant='adamw', overrides=None) -> str:
    path = folder / 'sweep.py'
    path.write_text(FILE.format(config=config, variant=variant, overrides=overrides or {}))
    return str(path)


def fail(capsys, *arguments: str) -> str:
    """Returns the error of a sweep."""
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith('error: ') and line.count('\n') == 1
    return line


@pytest.mark.parametrize('flag', ['--trials', '--jobs', '--heartbeat'])
def test_counts_begin_at_one(tmp_path, capsys, flag):
    assert f'{flag}=0 must be at least 1' in fail(capsys, write(tmp_path), flag, '0')


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'config': 'configs/nowhere.py'}, 'trial 0: .*configs/nowhere.py'),
        ({'variant': 'adam'}, 'trial 0: .*unknown variant :adam; this file has :adamw'),
        ({'overrides': {'optimizer.learning_rat': 1}}, 'trial 0: .*did you mean learning_rate'),
        ({'overrides': {'model.num_heads': 3}}, 'd_model.*num_heads'),
    ],
)
def test_a_sweep_file_that_describes_no_run(tmp_path, capsys, fields, message):
    path = write(tmp_path, **fields)
    line = fail(capsys, path, '--storage', str(tmp_path / 'journal.log'))
    assert f'error: {path}: ' in line and re.search(message, line), line


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / 'file').touch()
    line = fail(capsys, write(tmp_path), '--folder', str(tmp_path / 'file' / 'sweep'))
    assert 'Not a directory' in line
    assert 'nowhere' in fail(capsys, write(tmp_path), '--storage', 'sqlite:////proc/nowhere/a.db')


def test_a_missing_file(tmp_path, capsys):
    assert 'is not a Python file' in fail(capsys, str(tmp_path / 'sweep.py'))
