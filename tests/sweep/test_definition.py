import pathlib

import pytest

from gpt_jax.errors import UserError

pytest.importorskip('optuna')

from gpt_jax.sweep.definition import Sweep, Trial, load_sweep, locate, to_arguments

SWEEP = """from optuna import pruners, samplers
from gpt_jax.sweep.definition import Sweep
sweep = Sweep(config="x.py", suggest=print, {})
"""


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
    path = pathlib.Path('experiments/lr_sensitivity/sweep.py')
    assert load_sweep(path).name == 'lr_sensitivity'
    assert load_sweep(path, 'large').name == 'lr_sensitivity_large'
    with pytest.raises(UserError, match='to `other`, not None; it has sweep, large'):
        load_sweep(path, 'other')


def test_a_sweep_file_may_have_several():
    assert locate('a/b.py') == (pathlib.Path('a/b.py'), 'sweep')
    assert locate('a/b.py:c') == (pathlib.Path('a/b.py'), 'c')
    assert locate('a') == (pathlib.Path('a'), 'sweep')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = 1', 'must assign a gpt_jax.sweep.definition.Sweep'),
        ('1 / 0', 'ZeroDivisionError'),
        (None, 'is not a Python file'),
        (SWEEP.format('trials=0'), 'sweep.trials=0 is not valid; give a number from 1 on'),
        (SWEEP.format('direction="up"'), 'sweep.direction=.*give one of'),
        (SWEEP.format('sampler=samplers.TPESampler()'), 'sweep.sampler=.*give a class'),
        (SWEEP.format('sampler=samplers.GridSampler'), 'sweep.sampler=.*or a function of seed'),
        (SWEEP.format('pruner=pruners.MedianPruner'), 'sweep.pruner=.*give an instance'),
        (SWEEP.format('grid={"x": "abc"}'), 'sweep.grid=.*give a list of values'),
        (SWEEP.format('rate=1'), 'TypeError: .*rate'),
        (SWEEP.format('columns="eval/loss"'), 'sweep.columns=.*give names of columns'),
        (SWEEP.format('answer=3'), 'sweep.answer=3 .*give a function of results'),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    path = tmp_path / 'sweep.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_sweep(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
