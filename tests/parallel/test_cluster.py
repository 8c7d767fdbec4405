"""The processes of a run: flags, the variables of schedulers, and joining for real."""

import os
import re
import socket
import subprocess
import sys

import pytest

from gpt_jax.errors import UserError
from gpt_jax.parallel import cluster
from tests.command_line import ROOT

JOIN = """
import os, sys
import jax
from gpt_jax.errors import UserError
from gpt_jax.parallel import cluster, peers
found = cluster.from_environment(os.environ, timeout=5)
try:
    cluster.connect(found, connect_timeout=int(sys.argv[1]), heartbeat_timeout=10)
except UserError as error:
    print('error:', error, flush=True)
    os._exit(2)
print('joined', jax.process_index(), jax.process_count(), jax.local_device_count(), flush=True)
peers.leave(0)
"""


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def _join(*environments: dict[str, str], timeout: int = 60) -> list[tuple[int, str]]:
    """Status and output of one process for each set of variables, all started together."""
    base = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', JOIN, str(timeout)],
            cwd=ROOT,
            env={**base, 'PYTHONPATH': str(ROOT), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for variables in environments
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]


def _explicit(port: int, count: int, index: int) -> dict[str, str]:
    return {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(index),
    }


def _flags(coordinator='host:1234', num_processes='4', process_id='1') -> dict[str, str]:
    return {
        'coordinator': coordinator,
        'num_processes': num_processes,
        'process_id': process_id,
    }


def test_flags():
    found = cluster.from_flags(_flags())
    assert (found.coordinator, found.num_processes, found.process_id) == ('host:1234', 4, 1)
    assert cluster.from_flags(_flags('', '', '')) is None


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        (_flags(process_id=''), '--process_id missing'),
        (_flags(coordinator='', num_processes=''), '--coordinator and --num_processes missing'),
        (_flags(process_id='4'), r'--process_id=4 is out of range: .* the ids 0 to 3'),
        (_flags(process_id='-1'), '--process_id=-1 is not a number'),
        (_flags(num_processes='two'), '--num_processes=two is not a number'),
        (_flags(num_processes='0', process_id='0'), '--num_processes=0 must be at least 1'),
        (_flags(num_processes=str(10**11)), '--num_processes=100000000000 is not a number from 0'),
        (_flags(process_id='9' * 5000), '--process_id=9{40} is not a number from 0'),
        (_flags(coordinator='host'), '--coordinator=host must be HOST:PORT'),
    ],
)
def test_wrong_flags(flags, expected):
    with pytest.raises(UserError, match=expected):
        cluster.from_flags(flags)


def test_no_scheduler():
    assert cluster.from_environment({}, timeout=1) is None
    alone = _explicit(1234, 1, 0)
    assert cluster.from_environment(alone, timeout=1) is None, 'one process needs no one'


def test_incomplete_environment():
    with pytest.raises(UserError, match='JAX_COORDINATOR_ADDRESS missing from the environment'):
        cluster.from_environment({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}, timeout=1)


SLURM = {
    'SLURM_JOB_ID': '4711',
    'SLURM_STEP_NODELIST': 'node[007-010]',
    'SLURM_NTASKS': '4',
    'SLURM_PROCID': '2',
    'SLURM_LOCALID': '0',
    'SLURM_STEP_NUM_NODES': '4',
}


@pytest.mark.parametrize(
    ('tasks', 'local_id', 'devices'),
    [('1(x4)', '0', None), ('8(x4)', '3', (3,)), ('2,1', '1', (1,))],
    ids=['a task a node has all its devices', 'a task a device', 'unequal nodes'],
)
def test_slurm(tasks, local_id, devices, monkeypatch):
    variables = {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': tasks, 'SLURM_LOCALID': local_id}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = cluster.from_environment(os.environ, timeout=1)
    assert found.coordinator.startswith('node007:')
    assert (found.num_processes, found.process_id, found.num_hosts) == (4, 2, 4)
    assert found.local_device_ids == devices


def test_open_mpi(monkeypatch):
    variables = {
        'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
        'OMPI_COMM_WORLD_SIZE': '2',
        'OMPI_COMM_WORLD_RANK': '1',
        'OMPI_COMM_WORLD_LOCAL_RANK': '0',
        'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = cluster.from_environment(os.environ, timeout=1)
    assert found.coordinator.startswith('10.96.0.1:')
    assert (found.num_processes, found.process_id, found.local_device_ids) == (2, 1, None)


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '[::1]'])
def test_loopback_of_several_hosts_is_refused(host):
    several = cluster.Cluster(
        coordinator=f'{host}:1234', num_processes=2, process_id=0, num_hosts=2
    )
    with pytest.raises(UserError, match=r'is this machine only \(loopback\), and the job has 2'):
        cluster.connect(several, connect_timeout=1, heartbeat_timeout=10)


def test_slurm_processes_join():
    """Two tasks on this machine, with the variables that `srun --ntasks=2` gives."""
    job = {**SLURM, 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2'}
    job |= {'SLURM_STEP_NUM_NODES': '1', 'SLURM_STEP_TASKS_PER_NODE': '2'}
    job |= {'SLURM_JOB_ID': str(_port())}  # decides the port
    tasks = [{**job, 'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)} for i in range(2)]
    for index, (status, output) in enumerate(_join(*tasks)):
        assert status == 0, output
        assert f'joined {index} 2 1' in output


def test_indexed_job_processes_join():
    """Two pods of a JobSet: Kubernetes numbers them in JOB_COMPLETION_INDEX."""
    port = _port()
    pods = []
    for index in range(2):
        variables = _explicit(port, 2, index)
        variables['JOB_COMPLETION_INDEX'] = variables.pop('JAX_PROCESS_ID')
        pods.append(variables)
    for index, (status, output) in enumerate(_join(*pods)):
        assert status == 0, output
        assert f'joined {index} 2 1' in output


def _one_error(result: tuple[int, str]) -> str:
    status, output = result
    assert status == 2, output
    lines = output.strip().splitlines()
    assert len(lines) == 1, output
    assert lines[0].startswith('error: ')
    return lines[0]


def test_hosts_that_never_came_and_a_duplicate_id():
    """Ids 0, 1, 1 of three: the first 1 hears of the second, the others of the missing 2."""
    port = _port()
    results = _join(*(_explicit(port, 3, index) for index in (0, 1, 1)), timeout=10)
    first, *others = map(_one_error, results)
    assert re.search(r'of 3 processes these never came in \d+ s: 2;', first)
    assert sum('another process has the same id 1' in line for line in others) == 1
    assert sum('never came' in line for line in others) == 1


def test_no_coordinator():
    line = _one_error(_join(_explicit(_port(), 2, 1), timeout=2)[0])
    assert 'no answer from the coordinator 127.0.0.1' in line
    assert 'a loopback address, which no other host can reach' in line


def test_port_in_use():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen()
        port = listener.getsockname()[1]
        line = _one_error(_join(_explicit(port, 2, 0), timeout=5)[0])
    assert f'cannot listen at 127.0.0.1:{port}' in line
