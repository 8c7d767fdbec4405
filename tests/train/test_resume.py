"""A run that was interrupted ends with the numbers of one that was not, bit for bit."""

import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from gpt_jax.checkpoint import Checkpointer
from gpt_jax.config import finalize
from gpt_jax.main import main
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.program import make_program
from gpt_jax.train.run_folder import state_items
from gpt_jax.train.state import TrainState
from tests.command_line import TINY, Command, fingerprints, rows
from tests.tiny_config import VARIANTS, get_config


def _wait_for_rows(command: Command, workdir, count: int) -> None:
    """Returns when `count` rows are written, or the command has ended."""
    deadline = time.monotonic() + 240
    path = workdir / 'metrics.jsonl'
    while command.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b'\n') >= count:
            return
        time.sleep(0.005)
    assert command.poll() is not None, 'no progress'


@pytest.mark.slow
def test_goes_on_from_half_time(tmp_path, capsys):
    """A kill after the checkpoint of step 20 changes nothing."""
    config = [f'--config={TINY}']
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    assert main([*config, f'--workdir={whole}']) == 0
    shutil.copytree(whole, resumed)
    for step in (30, 40):
        shutil.rmtree(resumed / f'checkpoints/{step}')
    assert main([*config, f'--workdir={resumed}']) == 0
    assert 'resuming at step 20' in capsys.readouterr().out
    assert rows(resumed) == rows(whole)
    assert fingerprints(resumed, 40) == fingerprints(whole, 40)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_state_of_every_optimizer_is_saved(variant, tmp_path):
    check_resumes(finalize(get_config(variant), vocab_size=60), tmp_path)


def check_resumes(config, folder):
    """A step from a restored state gives the arrays of a step from the state itself."""
    program = make_program(config, make_mesh(config.mesh))
    tokens = np.random.default_rng(0).integers(0, 60, (2, 8, 33), dtype=np.int32)
    state, _ = program.advance(program.init(jax.random.key(0)), [{'tokens': tokens[0]}])
    with Checkpointer(folder, config.checkpoint) as checkpointer:
        checkpointer.save(1, state_items(state), {})
        checkpointer.wait()
        restored = checkpointer.restore(state_items(program.abstract_state))
    expected, actual = (
        program.advance(each, [{'tokens': tokens[1]}])
        for each in (state, TrainState(**restored.items))
    )
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
def test_killed_between_calls_of_several_steps(tmp_path, capsys):
    config = [f'--config={TINY}', '--config.train.steps_per_call=5']
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert main([*config, f'--workdir={whole}']) == 0
    with Command(*config, f'--workdir={killed}') as command:
        _wait_for_rows(command, killed, 14)  # past the checkpoint of step 20
        command.kill()
        assert command.wait() == -signal.SIGKILL
    assert main([*config, f'--workdir={killed}']) == 0
    assert 'resuming at step' in capsys.readouterr().out
    assert rows(killed) == rows(whole)
    assert fingerprints(killed, 40) == fingerprints(whole, 40)


@pytest.mark.slow
@pytest.mark.parametrize('kills', [4, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments(kills, tmp_path):
    """Every life is a process of its own; most take up checkpoints that another was writing."""
    steps = 36 * kills
    arguments = [
        f'--config={TINY}',
        f'--config.train.num_steps={steps}',
        '--config.train.log_every=1',
        '--config.eval.every=30',
        '--config.checkpoint.save_every=10',
        '--config.model.num_layers=1',
    ]
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert main([*arguments, f'--workdir={whole}']) == 0
    moments = random.Random(0)
    for kill in range(1, kills + 1):
        with Command(*arguments, f'--workdir={killed}') as command:
            _wait_for_rows(command, killed, 30 * kill)
            time.sleep(moments.uniform(0, 0.2))
            assert command.poll() is None, 'the run ended before the kill'
            command.kill()
            assert command.wait() == -signal.SIGKILL
    assert main([*arguments, f'--workdir={killed}']) == 0
    assert rows(killed) == rows(whole)
    assert fingerprints(killed, steps) == fingerprints(whole, steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'status'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=['SIGTERM', 'Ctrl-C']
)
def test_told_to_stop(number, status, tmp_path, capsys):
    workdir = tmp_path / 'run'
    config = [f'--config={TINY}', '--config.train.num_steps=2000', '--config.train.log_every=1']
    with Command(*config, f'--workdir={workdir}') as command:
        _wait_for_rows(command, workdir, 5)
        command.send_signal(number)
        assert command.wait(60) == status, command.output()
        assert 'the same command goes on from there' in command.output()
    step = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
    assert rows(workdir)[-1]['step'] == step
    assert main([*config, f'--workdir={workdir}', f'--config.train.num_steps={step + 3}']) == 0
    output = capsys.readouterr().out
    assert f'resuming at step {step}' in output
    assert 'config.train.num_steps: 2000 ->' in output
    assert rows(workdir)[-1]['step'] == step + 3
