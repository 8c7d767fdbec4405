import pytest

from gpt_jax.main import main
from gpt_jax.train.startup_report import describe_passes, warn_of_passes
from gpt_jax.train.trainer import Outcome, Trainer
from tests.command_line import TINY
from tests.tiny_config import TEXT


@pytest.mark.slow
@pytest.mark.parametrize(
    ('length', 'knobs'),
    [
        ('num_steps=51', 'config.train.num_steps or config.train.batch_size'),
        ('num_epochs=10.1', 'config.train.num_epochs'),
    ],
)
def test_the_start_tells_how_many_passes_a_run_makes(length, knobs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, 'train', lambda *_, **__: Outcome.COMPLETE)  # no step
    (tmp_path / 'text.txt').write_text(TEXT.read_text(encoding='utf-8')[:400], encoding='utf-8')
    arguments = [
        f'--config={TINY}',
        f'--workdir={tmp_path / "run"}',
        f'--config.data.source={tmp_path / "text.txt"}',
        f'--config.data.cache_dir={tmp_path}',
        '--config.model.max_seq_len=8',  # 5 steps per pass over 320 characters
        '--config.eval.every=0',
        f'--config.train.{length}',
    ]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    [row] = [line for line in lines if line.startswith('  text ')]
    assert row.split(maxsplit=1)[1] == '320 tokens to train on, 10 passes over your text'
    [warning] = [line for line in lines if 'by heart' in line]
    assert warning == (
        'warning: 10 passes over your text are so many that the model will learn it by heart; '
        f'lower {knobs}, or give it more text'
    )


@pytest.mark.parametrize(
    ('passes', 'text'),
    [(0.00123, '0.0012 passes'), (1.0, '1 pass'), (2.34, '2.3 passes'), (12345.6, '12,346 passes')],
)
def test_passes_in_words(passes, text):
    assert describe_passes(passes) == f'{text} over your text'


def test_ten_passes_are_not_warned_of(capsys):
    warn_of_passes(10.0, keys=['steps'])
    assert capsys.readouterr().out == ''
