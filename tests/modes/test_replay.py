"""Replaying a training step: the batch is the one that the trainer took, the loss the recorded."""

import json
import re

import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.data.config import DataConfig
from gpt_jax.data.prepare import prepare
from gpt_jax.inspector import replay as replays
from gpt_jax.main import main
from gpt_jax.modes import replay as mode
from gpt_jax.tokenizer import TokenizerConfig
from gpt_jax.train.program import Program
from tests.command_line import TINY
from tests.tiny_config import TEXT

NUM_STEPS = 5


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run on a mixture with packing and a loss mask, and the batches that it took, in order."""
    folder = tmp_path_factory.mktemp('replay')
    pair = [{'role': 'user', 'content': 'Why?'}, {'role': 'assistant', 'content': 'So it is.'}]
    (folder / 'chats.jsonl').write_text(
        '\n'.join(json.dumps({'messages': pair * count}) for count in range(1, 9))
    )
    books = prepare(
        DataConfig(corpus='text', source=str(TEXT), split='tail:0.2'), TokenizerConfig()
    )
    taken, advance = [], Program.advance

    def record(program, state, batches):
        taken.extend(batches)
        return advance(program, state, batches)

    workdir = folder / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, 'advance', record)
        flags = {
            **{'tokenizer.kind': 'byte', 'data.corpus': 'chat', 'data.segment_ids': 'true'},
            **{'data.source': folder / 'chats.jsonl', 'data.mixture': f'{books}=0.5'},
            **{'model.num_layers': 1, 'model.dropouts.residual': 0, 'model.dropouts.attention': 0},
            **{
                'data.skip_steps': '2',
                'train.num_steps': NUM_STEPS,
                'train.log_every': 1,
                'train.ema_decay': 0,
            },
            **{'checkpoint.save_every': 1, 'checkpoint.keep_last': 3, 'eval.every': 0},
        }
        given = [f'--config.{key}={value}' for key, value in flags.items()]
        assert main([f'--config={TINY}', f'--workdir={workdir}', *given]) == 0
    return workdir, taken


@pytest.fixture
def replayed(trained, monkeypatch):
    """Runs the mode; returns its result."""

    def run(*arguments):
        found = []

        def keep(*given, **more):
            found.append(replays.replay(*given, **more))
            return found[0]

        monkeypatch.setattr(mode, 'replay', keep)
        assert main(['--mode=replay', f'--workdir={trained[0]}', *arguments]) == 0
        return found[0]

    return run


def recorded(workdir, step):
    rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return next(row['train/loss'] for row in rows if row['step'] == step and 'train/loss' in row)


@pytest.mark.parametrize('step', [4, 5])
def test_the_batch_and_its_loss_are_those_of_the_step(trained, replayed, capsys, step):
    workdir, taken = trained
    result = replayed(f'--step={step}')
    batch = taken[step - 1]
    np.testing.assert_array_equal(result.tokens, batch['tokens'])
    np.testing.assert_array_equal(np.isfinite(result.loss), batch['loss_mask'] > 0)
    assert 0 < np.isfinite(result.loss).mean() < 1
    np.testing.assert_array_equal(result.documents, batch['segment_ids'])
    assert {0, 1} == set(result.source.tolist())
    assert result.mean == pytest.approx(recorded(workdir, step), rel=1e-5)
    printed = capsys.readouterr().out
    assert f'checkpoint {step - 1}, those that the step began with' in printed
    assert f'{recorded(workdir, step):.4f} in the row of step {step}\n' in printed
    assert f'--config.data.skip_steps=2,{step + 1}\n' in printed
    losses = [float(each) for each in re.findall(r'^sequence \d+: loss ([\d.]+)', printed, re.M)]
    assert len(losses) == mode.SHOWN and losses == sorted(losses, reverse=True)


def test_without_an_older_checkpoint_the_next_one_is_named(trained, replayed, capsys):
    result = replayed('--step=2', '--limit=1')
    np.testing.assert_array_equal(result.tokens, trained[1][1]['tokens'])
    printed = capsys.readouterr().out
    assert 'checkpoint 3, which have learned from it (none is older)' in printed
    assert printed.count('\nsequence ') == 1


def test_neither_the_mesh_nor_the_calls_matter(trained, replayed):
    config = trained[0] / 'config.json'
    before, text = replayed('--step=5'), config.read_text()
    try:
        values = json.loads(text)
        values['mesh']['fsdp'], values['eval']['batch_size'] = 64, 3
        config.write_text(json.dumps(values))
        after = replayed('--step=5')
    finally:
        config.write_text(text)
    np.testing.assert_array_equal(after.tokens, before.tokens)
    np.testing.assert_allclose(after.loss, before.loss, rtol=1e-5)


@pytest.mark.parametrize('mesh', ['program=pmap data=2', 'data=1 fsdp=2 tensor=2'])
def test_devices_share_the_work(trained, replayed, mesh):
    result = replayed('--step=5', *(f'--config.mesh.{each}' for each in mesh.split()))
    assert result.mean == pytest.approx(recorded(trained[0], 5), rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        ([], 'error: --mode replay needs --step N, the step whose batch is shown'),
        (['--step=6'], r'error: --step=6 is not a step of \S+, which has 1 to 5'),
        (['--step=0'], 'error: flag --step=0: 0 is not an integer in the range .*'),
        (['--step=5', '--config.seed=1'], 'error: the batches of .* cannot be shown: the data .*'),
    ],
)
def test_errors_are_one_line(trained, capsys, arguments, error):
    assert main(['--mode=replay', f'--workdir={trained[0]}', *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert re.fullmatch(error, line), line


def test_weights_from_elsewhere_have_no_steps(tmp_path, capsys):
    GPT(num_layers=1, num_heads=1, d_model=16, max_seq_len=8).save(tmp_path)
    assert main(['--mode=replay', f'--workdir={tmp_path}', '--step=1']) == 2
    assert 'holds weights and no training' in capsys.readouterr().err
