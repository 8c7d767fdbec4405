"""Evaluators that a config file defines."""

import json
import shutil

import pytest

from gpt_jax.main import main
from tests.tiny_config import TEXT

CONFIG = f"""
import jax
import optax

from gpt_jax.train.evaluators import Evaluator, Report
from tests import tiny_config

print('the file runs')


def get_config(variant=''):
    config = tiny_config.get_config()
    config.data.source = {str(TEXT)!r}
    config.train.num_steps = 20
    config.train.steps_per_call = 5
    config.eval.every = config.checkpoint.save_every = 10
    return config


def evaluators(config):
    return [Evaluator(name='table_norm', every=4, run=table_norm)]


def table_norm(trainer, state):
    norm = optax.tree.norm(state.params['embedding'])
    return Report(row={{'table/norm': float(norm)}}, lines=[f'table norm {{norm:.3f}}'])
"""


def test_a_config_file_adds_an_evaluator(tmp_path, capsys):
    """It runs at its steps, between the steps of a call, and at the end; and again on a resume."""
    file, workdir = tmp_path / 'own.py', tmp_path / 'run'
    file.write_text(CONFIG)
    assert main([f'--config={file}', f'--workdir={workdir}']) == 0
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    steps = [row['step'] for row in rows if 'table/norm' in row]
    assert steps == [4, 8, 12, 16, 20]
    printed = capsys.readouterr().out
    assert 'step 4: table norm' in printed and printed.count('the file runs') == 1

    longer = '--config.train.num_steps=24'
    shutil.copytree(workdir, tmp_path / 'copy')
    assert main([f'--config={file}', f'--workdir={workdir}', longer]) == 0
    assert 'goes on without' not in capsys.readouterr().out
    assert main([f'--workdir={tmp_path / "copy"}', longer]) == 0
    out = capsys.readouterr().out
    assert out.count('warning: this run goes on without table_norm: these evaluators') == 1


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        (
            'return [3]',
            'evaluators(config) returned 3; its entries must be gpt_jax.train.evaluators',
        ),
        ("return [Evaluator(name='loss', every=1, run=table_norm)]", "have the name 'loss'"),
        ('return 1 / 0', 'ZeroDivisionError: division by zero'),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, body, message):
    file = tmp_path / 'own.py'
    file.write_text(
        CONFIG.replace("return [Evaluator(name='table_norm', every=4, run=table_norm)]", body)
    )
    assert main([f'--config={file}', f'--workdir={tmp_path / "run"}']) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / 'run').exists()
