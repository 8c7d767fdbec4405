"""Faults of pods, done to real processes; nothing is lost.

`pytest tests/modes/test_faults.py` ends with a table of what was done and what was lost.
"""

import pathlib
import re
import shutil
import signal
import time

import pytest

from gpt_jax.main import main
from gpt_jax.parallel.peers import LOST
from tests.command_line import rows
from tests.pod import ARGUMENTS, Pod, assert_same_numbers, run_pod

pytestmark = pytest.mark.slow

LONG = (*ARGUMENTS, '--config.train.num_steps=100000', '--config.eval.every=0')
SAVING = (*LONG, '--config.checkpoint.save_every=5')
TEN = ('--config.train.num_steps=10',)
FAULTY = (*SAVING, '--config=tests/faulty_config.py')  # the last --config counts


@pytest.fixture(scope='module')
def table(request):
    """Takes rows (what was done, how it ended, what the same command made of it)."""
    rows = []
    yield lambda *row: rows.append(row)
    capture = request.config.pluginmanager.getplugin('capturemanager')
    with capture.global_and_fixture_disabled():
        print()
        for row in [('done', 'ended', 'the same command again'), *rows]:
            print('  '.join(f'{cell:<44}' for cell in row).rstrip())


def _lost(output: str, index: int) -> list[str]:
    return [line for line in output.splitlines() if f'lost process {index}' in line]


def _steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdecimal())


def _wait_for_checkpoint(pod: Pod, workdir: pathlib.Path) -> None:
    """Returns when a checkpoint is whole: they are written in the background."""
    pod.wait_for_rows(workdir, 8)
    deadline = time.monotonic() + 60
    while not _steps(workdir):
        assert time.monotonic() < deadline, 'no checkpoint'
        time.sleep(0.02)


def _check_resumes_exactly(workdir: pathlib.Path, tmp_path: pathlib.Path, saved: int) -> str:
    """One process takes the run on, and has the numbers of a run that nothing happened to.

    Returns what that means for the steps that were made before.
    """
    made = rows(workdir)[-1]['step']
    arguments = [*LONG, '--config.mesh.data=2', f'--config.train.num_steps={saved + 3}']
    assert main([*arguments, f'--workdir={workdir}']) == 0
    assert main([*arguments, f'--workdir={tmp_path / "undisturbed"}']) == 0
    assert_same_numbers(rows(workdir), rows(tmp_path / 'undisturbed'))
    again = f'{made - saved} steps made again' if made > saved else 'no step made again'
    return f'1 process: {again}, none lost'


def test_sigterm_to_one_saves_all_at_the_same_step(tmp_path, table):
    workdir = tmp_path / 'run'
    with Pod(2, 1, *LONG, f'--workdir={workdir}') as pod:
        pod.wait_for_rows(workdir, 3)
        pod.processes[1].send_signal(signal.SIGTERM)
        assert pod.wait() == [75, 75], '\n'.join(map(pod.output, range(2)))
        assert 'the same command goes on from there' in pod.output(0)
    (saved,) = _steps(workdir)
    assert rows(workdir)[-1]['step'] == saved
    result = _check_resumes_exactly(workdir, tmp_path, saved)
    table('SIGTERM to process 1 of 2', 'both: saved the same step, status 75', result)


@pytest.mark.parametrize('killed', [1, 0], ids=['worker', 'coordinator'])
def test_kill_of_one_ends_the_others_with_its_name(killed, tmp_path, table):
    workdir, other = tmp_path / 'run', 1 - killed
    with Pod(2, 1, *SAVING, f'--workdir={workdir}') as pod:
        _wait_for_checkpoint(pod, workdir)
        pod.processes[killed].kill()
        began = time.monotonic()
        assert pod.processes[other].wait(60) == LOST, pod.output(other)
        seconds = time.monotonic() - began
        assert seconds < 15
        assert len(_lost(pod.output(other), killed)) == 1, pod.output(other)
    result = _check_resumes_exactly(workdir, tmp_path, _steps(workdir)[-1])
    table(
        f'kill -9 of process {killed} of 2', f'the other: {seconds:.1f} s later, named it', result
    )


def test_an_error_after_the_coordinator_was_lost_names_the_loss(tmp_path):
    """Whatever a lost process 0 makes of a worker's next line, the loss is the reason."""
    with Pod(2, 1, *FAULTY, f'--workdir={tmp_path / "run"}') as pod:
        pod.wait_for_rows(tmp_path / 'run', 3)
        pod.processes[0].kill()
        pod.processes[0].wait()
        pod.processes[1].send_signal(signal.SIGUSR2)
        status = pod.processes[1].wait(60)
        assert (status, len(_lost(pod.output(1), 0))) == (LOST, 1), pod.output(1)


def _largest_array(step: pathlib.Path) -> pathlib.Path:
    arrays = [path for path in (step / 'params').rglob('*') if path.is_file()]
    return max(arrays, key=lambda path: path.stat().st_size)


def _a_flipped_bit(step: pathlib.Path) -> None:
    path = _largest_array(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _an_empty_step_folder(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
    """A run of ten steps, with checkpoints of the fifth and the last."""
    workdir = tmp_path_factory.mktemp('saved') / 'run'
    assert main([*SAVING, *TEN, '--config.mesh.data=2', f'--workdir={workdir}']) == 0
    return workdir


@pytest.mark.parametrize('damage', [_a_flipped_bit, _an_empty_step_folder])
def test_damage_is_found_by_all(damage, saved, tmp_path, table):
    """The newest checkpoint is set aside, and both processes go on from the one before."""
    workdir = tmp_path / 'run'
    shutil.copytree(saved, workdir)
    damage(workdir / 'checkpoints/10')
    before = rows(workdir)
    with Pod(2, 1, *SAVING, *TEN, f'--workdir={workdir}') as pod:
        assert pod.wait() == [0, 0], '\n'.join(map(pod.output, range(2)))
        assert re.search(r'checkpoints/10 is damaged \(.+\)', pod.output(0))
        assert 'resuming at step 5' in pod.output(0)
    assert _steps(workdir) == [5, 10]
    assert_same_numbers(rows(workdir), before)
    table(
        f'{damage.__name__.strip("_").replace("_", " ")} as the newest checkpoint',
        'set aside, the one before was read',
        '2 processes: 5 steps made again, none lost',
    )


def test_restarts_on_other_processes_and_meshes(tmp_path, table):
    """Each goes on from what the one before saved; together they are the undisturbed run."""
    workdir, alone, steps = tmp_path / 'run', tmp_path / 'alone', 16
    last = [*ARGUMENTS, '--config.mesh.data=4', f'--config.train.num_steps={steps}']
    assert main([*last, f'--workdir={alone}']) == 0
    shapes = {'2x2': ('fsdp=2', 'tensor=2', 5), '4x1': ('data=4', 'fsdp=1', 10)}
    shapes['1x4'] = ('fsdp=4', 'data=1', 12)
    for shape, (axis, other, step) in shapes.items():
        output = run_pod(
            shape,
            *ARGUMENTS,
            f'--config.mesh.{axis}',
            f'--config.mesh.{other}',
            f'--workdir={workdir}',
            f'--config.train.num_steps={step}',
        )
        assert f'[0] complete: {step} steps' in output
        assert f'4 x cpu, {shape[0]} process' in output
        assert not re.search(r'^\[[1-9]\]', output, re.MULTILINE), 'one process prints'
    assert main([*last, f'--workdir={workdir}']) == 0
    made, undisturbed = (
        [row for row in rows(each) if 'train/loss' in row] for each in (workdir, alone)
    )
    assert_same_numbers(made, undisturbed, relative=1e-5)
    losses = [
        abs(row['train/loss'] - other['train/loss']) / other['train/loss']
        for row, other in zip(made, undisturbed, strict=True)
    ]
    assert max(losses) <= 1e-6
    final = [rows(each)[-1]['eval/loss'] for each in (workdir, alone)]
    assert final[0] == pytest.approx(final[1], rel=1e-6)
    table(
        '2x2 -> 4x1 -> 1x4 -> 1, each on another mesh',
        'complete',
        f'losses of {steps} steps within {max(losses):.0e}',
    )


def test_a_stalled_worker_ends_the_job_with_its_stacks(tmp_path, table):
    workdir = tmp_path / 'run'
    # Saves may take longer than steps, and are rare here.
    rarely = '--config.checkpoint.save_every=40'
    with Pod(
        2, 1, *FAULTY, rarely, '--config.train.step_timeout=15', f'--workdir={workdir}'
    ) as pod:
        _wait_for_checkpoint(pod, workdir)
        pod.processes[1].send_signal(signal.SIGUSR1)
        began = time.monotonic()
        assert pod.wait(120) == [LOST, LOST]
        seconds = time.monotonic() - began
        assert seconds < 60
        outputs = [pod.output(index) for index in range(2)]
    assert 'error: process 1: no step for 15 s (config.train.step_timeout)' in outputs[1]
    assert 'in stand_still' in outputs[1]
    assert 'error: process 0: no step for 15 s' in outputs[0], 'it waits for the other'
    result = _check_resumes_exactly(workdir, tmp_path, _steps(workdir)[-1])
    table('process 1 of 2 stands still', f'both: {seconds:.0f} s later, with their stacks', result)


def test_an_error_of_one_tells_the_others_why(tmp_path):
    """A process whose data is gone says so, and the other one says whose error ended it."""
    each = [[], ['--config.data.source=/nowhere/text.txt']]
    with Pod(2, 1, *LONG, '--mode=prepare', each=each) as pod:
        statuses = pod.wait(60)
        outputs = [pod.output(index) for index in range(2)]
    assert statuses == [2, 2], outputs  # no launcher starts such a run again
    assert 'error: process 1:' in outputs[1] and '/nowhere/text.txt' in outputs[1]
    assert '/nowhere/text.txt' in outputs[0]
