"""Checkpoints on a disk: processes that die, disks that fill, what orbax would print."""

import logging
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gpt_jax.checkpoint import Checkpointer

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import os, resource, sys, time
import jax, jax.numpy as jnp
from gpt_jax.checkpoint import Checkpointer, CheckpointConfig
from gpt_jax.errors import UserError

folder, asynchronous, limit = sys.argv[1], sys.argv[2] == 'True', int(sys.argv[3])
def make_items(step):
    return {'params': {f'w{i}': jax.random.normal(jax.random.key(step + i), (512, 512))
                       for i in range(4)}}
writer = Checkpointer(folder, CheckpointConfig(keep_last=2, asynchronous=asynchronous))
restored = writer.restore(jax.eval_shape(lambda: make_items(1)))
start = restored.step if restored else 0
if restored:
    assert (restored.items['params']['w3'] == make_items(start)['params']['w3']).all()
print('restored', start, flush=True)
try:
    for step in range(start + 1, start + 10_000):
        if limit and step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        writer.save(step, make_items(step), {'position': step})
        if limit:
            writer.wait()
        print('saved', step, flush=True)
except UserError as error:
    print(error, flush=True)
    sys.exit(2)
"""


def test_kill_9_in_the_middle_of_saves_loses_only_the_unfinished_one(tmp_path):
    finished, unfinished_seen = 0, 0
    for attempt in range(4):
        child = subprocess.Popen(
            [sys.executable, '-c', PROGRAM, tmp_path, 'True', '0'],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        restored = int(child.stdout.readline().split()[1])
        # save() of a step waits for the one before, which is therefore on disk.
        assert restored >= finished
        for _ in range(3):
            finished = int(child.stdout.readline().split()[1]) - 1
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob('*-tmp*')) and time.monotonic() < deadline:
            time.sleep(0.001 * attempt)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        unfinished_seen += bool(list(tmp_path.glob('*-tmp*')))
    assert unfinished_seen  # at least one kill came while a checkpoint was being written
    with Checkpointer(tmp_path) as writer:
        assert writer.steps()[-1] >= finished
        assert not list(tmp_path.glob('*-tmp*'))


@pytest.mark.parametrize('asynchronous', [True, False])
def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoints(tmp_path, asynchronous):
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, tmp_path, str(asynchronous), '100000'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.splitlines() == [
        'restored 0',
        'saved 1',
        'saved 2',
        f'cannot write {tmp_path}: File too large; free some space or choose another folder',
    ]
    assert done.stderr == ''
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']


@pytest.mark.parametrize('inodes', [25, 40])
def test_a_disk_without_inodes_is_one_line_and_ends_at_once(tmp_path, inodes):
    disk = tmp_path / 'disk'
    disk.mkdir()
    script = 'mount -t tmpfs -o size=60m,nr_inodes=$1 tmpfs "$2" && shift 2 && exec "$@"'
    inside = ['unshare', '--mount', '--map-root-user', 'bash', '-c', script, 'bash', str(inodes)]
    if subprocess.run([*inside, disk, 'true'], capture_output=True).returncode:
        pytest.skip('this machine does not let a test mount a disk')
    done = subprocess.run(
        [*inside, disk, sys.executable, '-c', PROGRAM, disk, 'True', '0'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f'cannot write {disk}: No space left on device; free some space or choose another folder'
    )
    assert done.stderr == ''


def test_only_the_log_records_of_orbax_are_dropped(tmp_path, caplog):
    Checkpointer(tmp_path).close()
    logging.getLogger('asyncio').error('exception of <Task defined at /x/orbax/y.py:1>')
    logging.getLogger('asyncio').error('exception of <Task defined at /x/own.py:1>')
    assert [record.message for record in caplog.records] == [
        'exception of <Task defined at /x/own.py:1>'
    ]
