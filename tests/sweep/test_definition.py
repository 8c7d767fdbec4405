import pathlib

import pytest

from gpt_jax.errors import UserError

pytest.importorskip('optuna')

from gpt_jax.sweep.definition import Sweep, Trial, load_sweep, to_arguments


def make_sweep(**fields) -> Sweep:
    return Sweep(config='configs/x.py', suggest=lambda trial: Trial(), **fields)


def test_a_trial_becomes_a_command_line():
    trial = Trial('big', {'seed': 3, 'train.deterministic': True, 'train.frozen': ('a', 'b')})
    assert to_arguments(make_sweep(), trial, pathlib.Path('runs/0')) == [
        '--config',
        'configs/x.py:big',
        '--workdir',
        'runs/0',
        '--config.seed=3',
        '--config.train.deterministic=true',
        '--config.train.frozen=a,b',
    ]


def test_the_points_of_a_grid_are_its_product():
    points = make_sweep(grid={'a': [1, 2], 'b': ['x']}).points()
    assert points == [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]
    assert make_sweep().points() == []


def test_the_shipped_sweep_loads():
    assert load_sweep(pathlib.Path('experiments/lr_sensitivity/sweep.py')).trials == 8


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = 1', 'must assign a gpt_jax.sweep.definition.Sweep'),
        ('1 / 0', 'ZeroDivisionError'),
        (None, 'is not a Python file'),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    path = tmp_path / 'sweep.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_sweep(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
