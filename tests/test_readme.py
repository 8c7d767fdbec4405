"""README is run: its commands with tiny overrides, its Python with a tiny model."""

import pathlib
import re
import shlex

import pytest

from gpt_jax.main import main
from tests.tiny_config import TEXT

README = (pathlib.Path(__file__).parents[1] / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```$', README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line
    for language, block in BLOCKS
    if language == 'bash'
    for line in block.splitlines()
    if line.startswith('python -m gpt_jax.main')
]
TINY = [
    '--config.data.corpus=text',
    f'--config.data.source={TEXT}',
    '--config.data.split=tail:0.2',
    '--config.tokenizer.vocab_size=270',
    '--config.train.num_steps=2',
    '--config.train.batch_size=8',
    '--config.eval.batch_size=8',
    '--config.eval.batches=1',
    '--config.sample.max_new_tokens=4',
    '--config.mesh.data=1',
]


def test_the_readme_shows_all_modes_but_prepare():
    assert {'evaluate', 'generate'} <= set(re.findall(r'--mode (\w+)', '\n'.join(COMMANDS)))
    assert len(COMMANDS) >= 5


@pytest.mark.slow
def test_every_command_runs_in_order(tmp_path, monkeypatch, capsys):
    root = pathlib.Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(root / 'configs')
    for command in COMMANDS:
        arguments = shlex.split(command)[3:]
        assert main([*arguments, *TINY]) == 0, command + capsys.readouterr().err


def test_the_error_that_the_readme_shows(capsys):
    [(command, answer)] = re.findall(r'^\$ python -m gpt_jax.main (.*)\n(error: .*)$', README, re.M)
    assert main(shlex.split(command)) == 2
    assert capsys.readouterr().err.strip() == answer


@pytest.mark.slow
def test_the_python_that_the_readme_shows(tmp_path, monkeypatch, capsys):
    [code] = [block for language, block in BLOCKS if language == 'python']
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'README.md').write_text(README * 2, encoding='utf-8')
    # The same lines with a smaller model; what is called and how is README's.
    small = code.replace('num_layers=6', 'num_layers=1').replace('d_ff=2048', 'd_ff=64')
    small = small.replace('d_model=512', 'd_model=64').replace('steps=20', 'steps=2')
    small = small.replace("'runs/mine'", "'mine'")
    small = small.replace('d_ff=64)', 'd_ff=64, max_seq_len=32)')
    assert small != code
    names = {}
    exec(compile(small, 'README.md', 'exec'), names)
    assert names['logits'].shape == (1, 3, 10000)
    assert 'Once upon a time' in capsys.readouterr().out
