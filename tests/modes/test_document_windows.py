"""Runs on windows of documents: training, resuming, replay and evaluation."""

import json
import shutil

import numpy as np
import pytest

from gpt_jax.main import main
from tests.command_line import rows

ARGUMENTS = [
    '--config=configs/induction.py',
    '--config.data.num_documents=60',  # which use every letter
    '--config.data.block_length=4',
    '--config.data.split=hash:0.3',
    '--config.model.max_seq_len=12',
    '--config.model.num_layers=1',
    '--config.train.batch_size=8',
    '--config.train.num_steps=4',
    '--config.train.log_every=1',
    '--config.eval.every=2',
    '--config.checkpoint.save_every=2',
    '--config.sample.prompt=a b c',
]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return f'--config.data.cache_dir={tmp_path_factory.mktemp("cache")}'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    assert main([*ARGUMENTS, cache, f'--workdir={workdir}']) == 0
    return workdir


def test_training_reports_the_accuracy_of_what_is_learned(trained):
    measured = [row for row in rows(trained) if 'eval/accuracy' in row]
    assert [row['step'] for row in measured] == [2, 4]
    assert all(0 <= row['eval/accuracy'] < 1 for row in measured)
    assert main(['--mode=evaluate', f'--workdir={trained}']) == 0
    found = json.loads((trained / 'eval.json').read_text())
    assert found['accuracy'] == pytest.approx(measured[-1]['eval/accuracy'])
    assert found['loss'] == pytest.approx(measured[-1]['eval/loss'], rel=1e-5)
    assert found['tokens'] % 4 == 0, 'a block of each document'


def test_a_resumed_run_has_the_losses_of_a_whole_one(trained, cache, tmp_path):
    workdir = tmp_path / 'run'
    command = [*ARGUMENTS, cache, f'--workdir={workdir}']
    assert main([*command, '--config.train.num_steps=2']) == 0
    assert main(command) == 0
    expected, found = (
        {row['step']: row['train/loss'] for row in rows(each) if 'train/loss' in row}
        for each in (trained, workdir)
    )
    assert found == expected and len(found) == 4


def test_other_windows_are_other_batches(trained, cache, tmp_path, capsys):
    workdir = tmp_path / 'run'
    shutil.copytree(trained, workdir)
    command = [*ARGUMENTS, cache, f'--workdir={workdir}', '--config.train.num_steps=6']
    capsys.readouterr()
    assert main([*command, '--config.data.windows=continuous']) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert 'was trained on other batches (config.data.windows: ' in line
    assert "'documents' -> 'continuous')" in line


def test_a_batch_can_be_replayed(trained, capsys):
    assert main(['--mode=replay', f'--workdir={trained}', '--step=3', '--limit=1']) == 0
    printed = capsys.readouterr().out
    recorded = {row['step']: row.get('train/loss') for row in rows(trained)}[3]
    assert f'{recorded:.4f} in the row of step 3' in printed
    assert (trained / 'replay_3.html').is_file()
    lines = printed.splitlines()
    [title] = [i for i, line in enumerate(lines) if line.startswith('sequence ')]
    symbols = lines[title + 1].split()
    assert len(symbols) == 8 and symbols[:4] == symbols[4:]
    assert lines[title + 2 : title + 4] == ['---', '<|endoftext|>']
    assert lines[title + 4].startswith('largest: '), 'no padding'


def test_a_text_is_measured_whole_although_it_is_longer_than_a_window(trained, tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text(' '.join(np.random.default_rng(0).choice([*'abcd'], 50)))
    assert main(['--mode=evaluate', f'--workdir={trained}', f'--text={path}']) == 0
    assert json.loads((trained / 'eval.json').read_text())['tokens'] == 49


def test_epochs_are_those_of_documents(cache, tmp_path):
    workdir = tmp_path / 'run'
    arguments = [each for each in ARGUMENTS if 'num_steps' not in each]
    arguments += [cache, f'--workdir={workdir}', '--config.model.max_seq_len=30']
    arguments += ['--config.train.num_epochs=2']
    assert main(arguments) == 0
    manifest = json.loads((workdir / 'config.json').read_text())
    documents = 60 * 0.7
    assert manifest['train']['num_steps'] == pytest.approx(2 * documents / 8, abs=3)
