"""What pods do to runs, done to real processes; nothing is lost."""

import pathlib
import signal
import time

import pytest

from gpt_jax.main import main
from gpt_jax.parallel.peers import LOST
from tests.command_line import rows
from tests.pod import ARGUMENTS, Pod, assert_same_numbers

pytestmark = pytest.mark.slow

LONG = (*ARGUMENTS, '--config.train.num_steps=100000', '--config.eval.every=0')
SAVING = (*LONG, '--config.checkpoint.save_every=5')


def _lost(output: str, index: int) -> list[str]:
    return [line for line in output.splitlines() if f'lost process {index}' in line]


def _steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdecimal())


def _check_resumes_exactly(workdir: pathlib.Path, tmp_path: pathlib.Path, saved: int) -> None:
    """One process takes the run on, and has the numbers of a run that nothing happened to."""
    arguments = [*LONG, '--config.mesh.data=2', f'--config.train.num_steps={saved + 3}']
    assert main([*arguments, f'--workdir={workdir}']) == 0
    assert main([*arguments, f'--workdir={tmp_path / "undisturbed"}']) == 0
    assert_same_numbers(rows(workdir), rows(tmp_path / 'undisturbed'))


def test_sigterm_to_one_saves_all_at_the_same_step(tmp_path):
    workdir = tmp_path / 'run'
    with Pod(2, 1, *LONG, f'--workdir={workdir}') as pod:
        pod.wait_for_rows(workdir, 3)
        pod.processes[1].send_signal(signal.SIGTERM)
        assert pod.wait() == [75, 75], '\n'.join(map(pod.output, range(2)))
        assert 'the same command goes on from there' in pod.output(0)
    (saved,) = _steps(workdir)
    assert rows(workdir)[-1]['step'] == saved
    _check_resumes_exactly(workdir, tmp_path, saved)


@pytest.mark.parametrize('killed', [1, 0], ids=['worker', 'coordinator'])
def test_kill_of_one_ends_the_others_with_its_name(killed, tmp_path):
    workdir, other = tmp_path / 'run', 1 - killed
    with Pod(2, 1, *SAVING, f'--workdir={workdir}') as pod:
        pod.wait_for_rows(workdir, 8)
        pod.processes[killed].kill()
        began = time.monotonic()
        assert pod.processes[other].wait(60) == LOST
        assert time.monotonic() - began < 15
        assert len(_lost(pod.output(other), killed)) == 1, pod.output(other)
    _check_resumes_exactly(workdir, tmp_path, _steps(workdir)[-1])


def test_a_flipped_bit_is_found_by_all(tmp_path):
    """The newest checkpoint is set aside, and both processes go on from the one before."""
    workdir = tmp_path / 'run'
    arguments = [*SAVING, '--config.train.num_steps=10', f'--workdir={workdir}']
    assert main([*arguments, '--config.mesh.data=2']) == 0
    arrays = [path for path in (workdir / 'checkpoints/10/params').rglob('*') if path.is_file()]
    largest = max(arrays, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    before = rows(workdir)
    with Pod(2, 1, *arguments) as pod:
        assert pod.wait() == [0, 0], '\n'.join(map(pod.output, range(2)))
        assert 'checkpoints/10 is damaged (process 0: params/' in pod.output(0)
        assert 'resuming at step 5' in pod.output(0)
    assert _steps(workdir) == [5, 10]
    assert_same_numbers(rows(workdir), before)


def test_a_stalled_worker_ends_the_job_with_its_stacks(tmp_path):
    workdir = tmp_path / 'run'
    arguments = [argument for argument in SAVING if not argument.startswith('--config=')]
    # While it compiles nothing is late, so the time is that of compiling on a busy machine.
    arguments += ['--config=tests/stalling_config.py', '--config.train.step_timeout=30']
    with Pod(2, 1, *arguments, f'--workdir={workdir}') as pod:
        pod.wait_for_rows(workdir, 8)
        pod.processes[1].send_signal(signal.SIGUSR1)
        began = time.monotonic()
        assert pod.wait(120) == [LOST, LOST]
        assert time.monotonic() - began < 60
        outputs = [pod.output(index) for index in range(2)]
    assert 'error: process 1: no step for 30 s (config.train.step_timeout)' in outputs[1]
    assert 'in stand_still' in outputs[1]
    assert 'error: process 0: no step for 30 s' in outputs[0], 'it waits for the other'


def test_an_error_of_one_tells_the_others_why(tmp_path):
    """A process whose data is gone says so, and the other one says whose error ended it."""
    each = [[], ['--config.data.source=/nowhere/text.txt']]
    with Pod(2, 1, *LONG, '--mode=prepare', each=each) as pod:
        statuses = pod.wait(60)
        outputs = [pod.output(index) for index in range(2)]
    assert statuses[1] == 2 and statuses[0] in (2, LOST), outputs
    assert 'error: process 1:' in outputs[1] and '/nowhere/text.txt' in outputs[1]
    assert '/nowhere/text.txt' in outputs[0]
