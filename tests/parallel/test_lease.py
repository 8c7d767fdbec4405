import errno
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import pytest

from gpt_jax import files, object_store, run
from gpt_jax.errors import UserError
from gpt_jax.parallel import lease
from tests import command_line


@pytest.fixture
def path(s3, monkeypatch) -> pathlib.Path:
    monkeypatch.setattr(lease, 'RENEW_SECONDS', 0.3)
    monkeypatch.setattr(lease, 'STALE_SECONDS', 2.0)
    return object_store.to_path(f'{s3}/run', key='--workdir') / 'lock'


def holder(**changes) -> dict:
    return {
        'host': 'elsewhere', 'pid_namespace': 'pid:[1]', 'pid': 7, 'token': 'theirs', 'renewed': 3,
    } | changes  # fmt: skip


def test_it_is_renewed_and_goes_with_the_block(path):
    with lease.hold(path):
        first = files.read_json(path)
        assert first['pid'] == os.getpid()
        time.sleep(1)
        assert files.read_json(path)['renewed'] > first['renewed']
    assert not path.exists()


def test_a_second_writer_is_refused(path):
    """Though the first is a thread of this very process here: its number alone says nothing."""
    other = holder()
    stop = threading.Event()

    def renew():
        while not stop.wait(0.2):
            other['renewed'] += 1
            files.write_json(path, other)

    files.write_json(path, other)
    thread = threading.Thread(target=renew)
    thread.start()
    lines = []
    try:
        message = f'--workdir={path.parent} is in use by process 7 on elsewhere; wait'
        with (
            pytest.raises(UserError, match=re.escape(message)),
            lease.hold(path, report=lines.append),
        ):
            pytest.fail('two writers')
    finally:
        stop.set()
        thread.join()
    assert len(lines) == 1 and 'process 7 on elsewhere' in lines[0]
    assert files.read_json(path)['token'] == 'theirs'


def test_one_that_is_not_renewed_is_taken_over(path):
    files.write_json(path, holder())
    began = time.monotonic()
    with lease.hold(path, report=lambda line: None):
        assert time.monotonic() - began > lease.STALE_SECONDS
        assert files.read_json(path)['pid'] == os.getpid()


def test_a_dead_process_of_this_machine_is_known_at_once(path):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    here = {'host': lease.socket.gethostname(), 'pid_namespace': lease._pid_namespace()}
    files.write_json(path, holder(pid=dead.pid, **here))
    with lease.hold(path, report=pytest.fail):
        pass
    files.write_json(path, holder(pid=os.getppid(), **here))
    lines = []
    with lease.hold(path, report=lines.append):
        assert lines, 'a living one is waited for'


def test_a_writer_that_was_taken_for_dead_ends(path):
    code = (
        'import pathlib, sys, time\n'
        'from gpt_jax import object_store\n'
        'from gpt_jax.parallel import lease\n'
        'lease.RENEW_SECONDS = 0.3\n'
        f'path = object_store.to_path({str(path)!r}, key="--workdir")\n'
        'with lease.hold(path):\n'
        '    print("held", flush=True)\n'
        '    time.sleep(60)\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=command_line.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == 'held\n'
        files.write_json(path, holder())
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == lease.TAKEN
    assert errors.startswith(f'error: --workdir={path.parent} is in use by process 7 on elsewhere')
    assert files.read_json(path)['token'] == 'theirs'


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_gets_a_lease(number, tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run.fcntl, 'flock', no_locks)
    monkeypatch.setattr(lease, 'RENEW_SECONDS', 0.1)
    monkeypatch.setattr(lease, '_is_dead', lambda _: False)  # the second writer is this process
    workdir = tmp_path / 'run'
    with run.lock(workdir):
        assert 'has no file locks' in capsys.readouterr().out
        assert files.read_json(workdir / 'lease')['pid'] == os.getpid()
        with pytest.raises(UserError, match='is in use by process'), run.lock(workdir):
            pytest.fail('two writers')
    assert not workdir.exists(), 'nothing was written, nothing is left'


def test_a_damaged_lease_counts_as_held_until_it_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, 'RENEW_SECONDS', 0.1)
    monkeypatch.setattr(lease, 'STALE_SECONDS', 0.3)
    (tmp_path / 'lease').write_text('{"host"')
    lines = []
    with lease.hold(tmp_path / 'lease', report=lines.append):
        assert len(lines) == 1
