import glob
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile

import pytest

from gpt_jax.errors import UserError
from tests.sweep.test_sweep import results, start, sweep

pytest.importorskip('optuna')
pytest.importorskip('psycopg', reason='psycopg is not installed')

from gpt_jax.sweep.study import SharedStudy
from tests.sweep.test_definition import make_sweep

BINARIES = sorted(glob.glob('/usr/lib/postgresql/*/bin'))


def server_user() -> str | None:
    """The server refuses root; it runs as the user of Debian's package then."""
    if os.getuid():
        return None
    try:
        return pwd.getpwnam('postgres').pw_name
    except KeyError:
        pytest.skip('the PostgreSQL server needs a user other than root')


@pytest.fixture
def postgres():
    """The URL of a database of a new server."""
    if not BINARIES:
        pytest.skip('no PostgreSQL server is installed')
    user, binaries = server_user(), pathlib.Path(BINARIES[-1])
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix='pg')  # tmp_path is private to this user
    if user:
        shutil.chown(folder, user)

    def control(program: str, *arguments: str) -> None:
        subprocess.run(
            [binaries / program, *arguments],
            user=user,
            cwd=folder,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    data = f'{folder}/data'
    options = f'-p {port} -h 127.0.0.1 -k {folder} -c fsync=off'
    try:
        control('initdb', '-D', data, '-U', 'sweeper', '-A', 'trust', '--no-sync')
        control('pg_ctl', '-D', data, '-w', '-l', f'{folder}/log', '-o', options, 'start')
        try:
            yield f'postgresql+psycopg://sweeper@127.0.0.1:{port}/postgres'
        finally:
            control('pg_ctl', '-D', data, '-m', 'immediate', 'stop')
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_two_processes_share_a_server_and_one_is_killed(tmp_path, postgres):
    folder, fault = tmp_path / 'sweep', tmp_path / 'fault'
    fault.touch()
    arguments = ['--storage', postgres, '--heartbeat', '1']
    with start(folder, *arguments, FAULT=str(fault)) as killed:
        output = sweep(folder, *arguments)
        assert killed.wait() == -9
    assert 'resuming at step' in output
    found = results(folder)['trials']
    assert sorted(record['params']['seed'] for record in found) == [3, 4, 5]
    assert sorted(record['attempts'] for record in found) == [1, 1, 2]
    assert {record['state'] for record in found} == {'complete'}


def test_a_server_that_is_gone_is_one_line(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    url = f'postgresql+psycopg://someone:secret@127.0.0.1:{port}/postgres'
    with pytest.raises(UserError, match=r'--storage=.*//someone:\*\*\*@127.*refused') as caught:
        SharedStudy(make_sweep(), folder=tmp_path, storage=url)
    assert 'secret' not in str(caught.value) and '\n' not in str(caught.value)
