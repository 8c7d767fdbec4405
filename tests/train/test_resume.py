"""A run that was interrupted ends with the numbers of one that was not, bit for bit."""

import random
import signal
import subprocess
import time

import pytest

from tests.command_line import TINY, fingerprints, rows, run, start
from tests.tiny_config import VARIANTS


def _wait_for_rows(process: subprocess.Popen, workdir, count: int) -> None:
    """Returns when `count` rows are written, or the process has ended."""
    deadline = time.monotonic() + 240
    path = workdir / 'metrics.jsonl'
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b'\n') >= count:
            return
        time.sleep(0.005)
    assert process.poll() is not None, 'no progress'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('variant', 'steps_per_call'), [*((variant, 1) for variant in VARIANTS), ('adamw', 5)]
)
def test_killed_at_half_time(variant, steps_per_call, tmp_path):
    config = [f'--config={TINY}:{variant}', f'--config.train.steps_per_call={steps_per_call}']
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    run(*config, f'--workdir={whole}')

    process = start(*config, f'--workdir={killed}')
    _wait_for_rows(process, killed, 14)  # past the checkpoint of step 20
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    output = run(*config, f'--workdir={killed}')
    assert 'resuming at step' in output

    assert rows(killed) == rows(whole)
    assert fingerprints(killed, 40) == fingerprints(whole, 40)


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path):
    arguments = [
        f'--config={TINY}',
        '--config.train.num_steps=600',
        '--config.train.log_every=1',
        '--config.eval.every=50',
        '--config.checkpoint.save_every=15',
    ]
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    run(*arguments, f'--workdir={whole}')
    moments = random.Random(0)
    for kill in range(1, 11):
        process = start(*arguments, f'--workdir={killed}')
        _wait_for_rows(process, killed, 50 * kill)
        time.sleep(moments.uniform(0, 0.3))
        assert process.poll() is None, 'the run ended before the kill'
        process.kill()
        process.communicate()
    run(*arguments, f'--workdir={killed}')
    assert rows(killed) == rows(whole)
    assert fingerprints(killed, 600) == fingerprints(whole, 600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'status'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=['SIGTERM', 'Ctrl-C']
)
def test_told_to_stop(number, status, tmp_path):
    config = [f'--config={TINY}', '--config.train.num_steps=2000', '--config.train.log_every=1']
    process = start(*config, f'--workdir={tmp_path / "run"}')
    _wait_for_rows(process, tmp_path / 'run', 5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    step = max(int(path.name) for path in (tmp_path / 'run/checkpoints').iterdir())
    assert rows(tmp_path / 'run')[-1]['step'] == step
    assert 'the same command goes on from there' in output
    output = run(*config, f'--workdir={tmp_path / "run"}', f'--config.train.num_steps={step + 3}')
    assert f'resuming at step {step}' in output
    assert 'config.train.num_steps: 2000 ->' in output
    assert rows(tmp_path / 'run')[-1]['step'] == step + 3
