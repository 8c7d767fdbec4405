"""The verdict, the files and the flags, on scales that are made up."""

import json
import sys

import numpy as np
import pytest

from gpt_jax.coordinate_check.measure import Scales
from gpt_jax.coordinate_check.report import describe, draw, is_flat, verdict
from gpt_jax.main import main
from gpt_jax.model.config import Parametrization
from gpt_jax.modes import coordinate_check
from tests.command_line import TINY


def made_up(*slopes: float, parametrization=Parametrization.MUP, widths=(16, 32, 64)) -> Scales:
    """Scales of one point, as power laws with these slopes by step."""
    values = np.array(widths, float)[:, None] ** np.array(slopes)
    return Scales(
        parametrization=parametrization,
        widths=tuple(widths),
        points=('mlp_output',),
        values=values[..., None],
        losses=np.ones(values.shape),
    )


@pytest.mark.parametrize(
    'slopes, flat',
    [
        ([0.0, 0.1, -0.1], True),
        ([0.0, 0.9, 0.0], False),  # grows for a while
        ([0.0, 0.0, -0.5], False),
        ([-0.5, -0.3, -0.4], True),  # random sums, divided by their number
        ([-0.5, 0.0, 0.3], False),
        ([0.0, -0.5, 0.0], True),  # falls for a while
    ],
)
def test_the_verdict(slopes, flat):
    scales = made_up(*slopes)
    np.testing.assert_allclose(scales.slopes[:, 0], slopes, atol=1e-12)
    assert is_flat(scales) is flat
    assert ('is flat' in verdict(scales)) is flat
    assert 'mlp_output' in describe(scales)


def test_a_verdict_names_the_point_and_the_step():
    assert 'mlp_output has slope +0.90 at step 1' in verdict(made_up(0.0, 0.9, 0.3))
    scales = made_up(0.0, 0.0)
    scales.values[0, 1] = np.nan
    assert not is_flat(scales) and 'diverges' in verdict(scales)


@pytest.fixture
def measured(monkeypatch):
    """Calls of `measure`, which is replaced; μP's slopes are those of the test."""
    calls, slopes = [], {'mup': (0.0, 0.0), 'standard': (0.5, 1.0)}

    def measure(config, parametrization, batches, *, factors, seeds, done):
        calls.append((config.model.base.d_model, parametrization, len(batches), factors, seeds))
        return made_up(*slopes[parametrization], parametrization=parametrization)

    monkeypatch.setattr(coordinate_check, 'measure', measure)
    return calls, slopes


def check(tmp_path, *arguments):
    out = tmp_path / 'check.png'
    flags = [f'--config={TINY}', '--config.model.parametrization=mup', f'--out={out}']
    return main(['--mode=coordinate_check', *flags, *arguments]), out


def test_the_mode_measures_both_and_writes_numbers_and_a_picture(tmp_path, measured, capsys):
    calls, slopes = measured
    arguments = ['--config.model.base.d_model=16', '--check_steps=3']
    status, out = check(tmp_path, *arguments)
    assert status == 0
    assert calls == [(16, 'mup', 4, [1, 2, 4, 8], 1), (16, 'standard', 4, [1, 2, 4, 8], 1)]
    printed = capsys.readouterr().out
    assert 'mup is flat' in printed and 'standard is not flat' in printed
    report = json.loads(out.with_suffix('.json').read_text())
    assert [each['flat'] for each in report['checks']] == [True, False]
    assert report['config']['model']['base']['d_model'] == 16
    if 'no picture' not in printed:
        assert out.read_bytes().startswith(b'\x89PNG')
    slopes['mup'] = (0.0, 0.6)
    assert check(tmp_path, *arguments)[0] == 1


def test_a_standard_config_is_its_own_base(tmp_path, measured):
    arguments = ['--config.model.parametrization=standard', '--factor=2', '--factor=1']
    assert check(tmp_path, *arguments)[0] == 0
    assert [call[:2] for call in measured[0]] == [(32, 'standard'), (32, 'mup')]
    assert measured[0][0][3] == [1, 2]


def test_wrong_flags_are_refused(tmp_path, capsys):
    for argument, message in (
        ('--factor=2', '--factor needs two widths'),
        ('--out=a.jpg', 'must end in .png'),
        ('--factor=0', 'not an integer in the range'),
    ):
        assert check(tmp_path, argument)[0] == 2
        assert message in capsys.readouterr().err


def test_without_matplotlib_there_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert draw([made_up(0.0, 0.0)], tmp_path / 'a.png').startswith('no picture')
    assert not [*tmp_path.iterdir()]
