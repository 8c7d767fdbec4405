"""A workdir and shards in an object store: what a disk gives, whatever is done to the run."""

import json
import pathlib
import re
import signal
import time

import pytest

from gpt_jax import GPT, object_store
from gpt_jax.checkpoint.manifest import list_steps, read_document
from gpt_jax.main import main
from tests.command_line import TIMED, Command, rows, run
from tests.pod import ARGUMENTS, Pod
from tests.serve.tiny import Client, until

pytestmark = pytest.mark.slow

STEPS = 8
ARGUMENTS = (
    *(each for each in ARGUMENTS if not each.startswith(('--config.mesh.', '--config='))),
    '--config=tests/tiny_config.py:sgd',  # which has the smallest state
    '--config.checkpoint.save_every=3',
    '--config.checkpoint.keep_best=false',
    '--config.eval.every=0',
    '--config.train.sinks=jsonl',
)
# Of two devices, one process or two.
DEVICES = '--config.mesh.data=2'


@pytest.fixture(scope='module')
def local(tmp_path_factory) -> pathlib.Path:
    """An undisturbed run on a disk."""
    workdir = tmp_path_factory.mktemp('local') / 'run'
    arguments = [*ARGUMENTS, DEVICES, f'--config.train.num_steps={STEPS}']
    assert main([*arguments, f'--workdir={workdir}']) == 0
    return workdir


def remote_rows(workdir: str) -> list[dict]:
    path = object_store.to_path(workdir, key='') / 'metrics.jsonl'
    lines = map(json.loads, path.read_bytes().splitlines())
    return [{key: value for key, value in row.items() if key not in TIMED} for row in lines]


def leaves(folder, step: int) -> dict:
    return read_document(folder / 'checkpoints', step)['leaves']


def assert_same_run(workdir: str, local: pathlib.Path) -> None:
    """The same numbers and the same final state, bit for bit."""
    assert remote_rows(workdir) == rows(local)
    assert leaves(object_store.to_path(workdir, key=''), STEPS) == leaves(local, STEPS)


def test_killed_and_resumed_with_remote_shards(s3, local, tmp_path, capfd):
    """Train, kill -9, resume, evaluate, generate, load: all of it in the bucket."""
    workdir, shards = f'{s3}/runs/a', f'{s3}/data/alice'
    cache = f'--config.data.cache_dir={tmp_path / "cache"}'
    publish = [*ARGUMENTS, cache, '--mode=prepare', f'--publish={shards}']
    assert main(publish) == 0
    arguments = [
        *ARGUMENTS, DEVICES, cache, f'--workdir={workdir}', '--config.data.corpus=shards',
        f'--config.data.source={shards}',
    ]  # fmt: skip
    checkpoints = object_store.to_path(workdir, key='') / 'checkpoints'
    with Command(*arguments, '--config.train.num_steps=100000') as command:
        deadline = time.monotonic() + 120
        while not list_steps(checkpoints):
            assert command.poll() is None and time.monotonic() < deadline, command.output()
            time.sleep(0.05)
        command.kill()
        assert command.wait() == -signal.SIGKILL
    step = max(list_steps(checkpoints))
    assert {row['step'] for row in remote_rows(workdir)} >= set(range(1, step + 1)), 'rows lost'
    for late in (step for step in list_steps(checkpoints) if step > 6):
        object_store.remove_folder(checkpoints / str(late))
    capfd.readouterr()
    arguments.append(f'--config.train.num_steps={STEPS}')
    assert main(arguments) == 0
    output = capfd.readouterr().out
    assert re.search(r'^resuming at step [36]$', output, re.MULTILINE), output
    assert f'complete: {STEPS} steps in {workdir}' in output
    assert_same_run(workdir, local)
    root = object_store.to_path(workdir, key='')
    assert not (root / 'lock').exists()
    assert main([f'--workdir={workdir}', '--mode=evaluate', DEVICES]) == 0
    assert main([f'--workdir={local}', '--mode=evaluate', DEVICES]) == 0
    mine, other = (json.loads((each / 'eval.json').read_bytes()) for each in (root, local))
    assert mine == other
    generate = ['--mode=generate', '--prompt=Alice', '--max_new_tokens=8', '--temperature=0']
    texts = []
    for each in (workdir, local):
        capfd.readouterr()
        assert main([f'--workdir={each}', *generate]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1]
    gpt = GPT.load(workdir)
    assert gpt.steps == STEPS
    gpt.save(f'{s3}/runs/b')
    again = GPT.load(f'{s3}/runs/b')
    assert again.generate('Alice', max_new_tokens=4) == gpt.generate('Alice', max_new_tokens=4)


def test_google_cloud_storage(gs, local):
    workdir = f'{gs}/runs/a'
    arguments = [*ARGUMENTS, DEVICES, f'--workdir={workdir}']
    assert main([*arguments, '--config.train.num_steps=5', '--config.schedule.kind=constant']) == 0
    assert main([*arguments, f'--config.train.num_steps={STEPS}']) == 0
    root = object_store.to_path(workdir, key='')
    assert leaves(root, STEPS) == leaves(local, STEPS)
    losses = [row for row in remote_rows(workdir) if 'train/loss' in row]
    assert losses == [row for row in rows(local) if 'train/loss' in row]
    pytest.importorskip('uvicorn', reason='needs the extra serve')
    with Command(f'--workdir={workdir}', '--mode=serve', '--port=0', '--noinspect') as server:
        until(lambda: re.search('^ready: ', server.output(), re.MULTILINE), seconds=120)
        port = int(re.search(r'127\.0\.0\.1:(\d+): loading', server.output())[1])
        [model] = json.loads(Client(port).request('/v1/models')[2])['data']
        assert model['id'] == 'a' and time.time() - 600 < model['created'] <= time.time() + 1


def test_two_processes_that_share_no_disk(s3, local, tmp_path):
    """Each has a cache of its own; one process goes on from what the two saved."""
    workdir, shards = f'{s3}/runs/a', f'{s3}/data/alice'
    assert main([*ARGUMENTS, '--mode=prepare', f'--publish={shards}']) == 0
    arguments = [
        *ARGUMENTS, DEVICES, f'--workdir={workdir}', '--config.data.corpus=shards',
        f'--config.data.source={shards}',
    ]  # fmt: skip
    environments = [{'XDG_CACHE_HOME': str(tmp_path / name)} for name in 'ab']
    with Pod(2, 1, *arguments, '--config.train.num_steps=5', environments=environments) as pod:
        assert pod.wait() == [0, 0], '\n'.join(map(pod.output, range(2)))
        assert 'complete: 5 steps' in pod.output(0)
        assert 'complete' not in pod.output(1), 'one process prints'
    for name in 'ab':
        assert len(list((tmp_path / name).rglob('manifest.json'))) == 1
    root = object_store.to_path(workdir, key='')
    assert list_steps(root / 'checkpoints') == [3, 5]
    assert main([*arguments, f'--config.train.num_steps={STEPS}']) == 0
    mine = [row for row in remote_rows(workdir) if 'train/loss' in row]
    other = [row for row in rows(local) if 'train/loss' in row]
    assert [row['step'] for row in mine] == [row['step'] for row in other]
    for row, expected in zip(mine, other, strict=True):
        assert row['train/loss'] == pytest.approx(expected['train/loss'], rel=1e-5)


def test_doctor(s3):
    output = run(
        *ARGUMENTS, DEVICES, '--mode=doctor', f'--workdir={s3}/runs/a', '--local_pod=2x1',
        '--doctor_megabytes=1',
    )  # fmt: skip
    assert f'workdir     {s3}/runs/a: written by one and read by all' in output
    assert object_store.list_objects(object_store.to_path(f'{s3}/runs', key='')) == []
