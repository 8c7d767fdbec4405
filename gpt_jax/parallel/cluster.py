"""Discovery of the processes of a run, and joining them with `jax.distributed`.

The cluster is described by flags, by the environment of a Kubernetes Indexed Job or JobSet, or by
a scheduler that jax detects: TPU pods, GKE, SLURM, Open MPI.
"""

import contextlib
import dataclasses
import functools
import ipaddress
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

import jax

from gpt_jax.errors import UserError
from gpt_jax.parallel import abort_handler

FLAGS = ('coordinator', 'num_processes', 'process_id')
MOST_PROCESSES = 999_999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes of a run, as seen from one of them."""

    coordinator: str  # HOST:PORT, where process 0 listens
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None  # None: all devices of the host
    num_hosts: int = 1  # 1 if the environment does not say


def from_flags(given: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster of `--coordinator --num_processes --process_id`; None without them.

    Raises:
        UserError: one of them is missing or invalid.
    """
    if not any(given.values()):
        return None
    missing = [f'--{name}' for name in FLAGS if not given.get(name)]
    if missing:
        raise UserError(
            f'{" and ".join(missing)} missing: --coordinator=HOST:PORT, --num_processes=N and '
            f'--process_id=I belong together'
        )
    return _checked(given, names={name: f'--{name}' for name in FLAGS})


def from_environment(environment: Mapping[str, str], *, timeout: int) -> Cluster | None:
    """Returns the cluster that a scheduler describes; None for a single process.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (or an Indexed Job's
    `JOB_COMPLETION_INDEX`) take precedence over jax's own detection.

    Args:
      environment: `os.environ`.
      timeout: seconds that jax may wait for the name of a TPU pod's first host.

    Raises:
        UserError: the variables are incomplete or invalid.
    """
    names = {
        'coordinator': 'JAX_COORDINATOR_ADDRESS',
        'num_processes': 'JAX_NUM_PROCESSES',
        'process_id': 'JAX_PROCESS_ID',
    }
    if 'JAX_PROCESS_ID' not in environment and 'JOB_COMPLETION_INDEX' in environment:
        names['process_id'] = 'JOB_COMPLETION_INDEX'
    if 'JAX_NUM_PROCESSES' in environment or 'JAX_PROCESS_ID' in environment:
        missing = [name for name in names.values() if not environment.get(name)]
        if missing:
            raise UserError(
                f'{" and ".join(missing)} missing from the environment: '
                f'{", ".join(names.values())} belong together'
            )
        given = {field: environment[name] for field, name in names.items()}
        return _unless_single(_checked(given, names=names))
    return _unless_single(_detected(environment, timeout=timeout))


def connect(cluster: Cluster, *, connect_timeout: int, heartbeat_timeout: int) -> None:
    """Joins the other processes; must be called before any backend starts.

    Afterwards `jax.devices()` lists the devices of all processes. SIGTERM keeps its usual effect:
    jax's preemption service, which swallows it, stays off.

    Args:
      cluster: the processes.
      connect_timeout: seconds to wait for all of them.
      heartbeat_timeout: seconds without a heartbeat after which a process counts as lost.

    Raises:
        UserError: the coordinator's address is unusable, or processes did not join in time.
    """
    host = cluster.coordinator.rpartition(':')[0]
    if cluster.num_hosts > 1 and _is_loopback(host):
        raise UserError(
            f'the coordinator {cluster.coordinator} is this machine only (loopback), and the job '
            f'has {cluster.num_hosts} hosts; give --coordinator an address of the host of process '
            f'0 that the others can reach (a name that /etc/hosts maps to 127.* will not do)'
        )
    if cluster.process_id == 0:
        _require_free_port(cluster.coordinator)
    jax.config.update('jax_enable_preemption_service', False)
    # Otherwise jax ends the surviving processes before they can report which one was lost.
    jax.config.update('jax_enable_recoverability', True)
    began = time.monotonic()

    def explain(output: str) -> str:
        waited = time.monotonic() - began
        return f'error: process {cluster.process_id}: ' + explain_failure(cluster, output, waited)

    with (
        _captured_stderr() as read,
        abort_handler.installed(lambda: explain(read()), status=2),
        _register_timeout(connect_timeout),
    ):
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.num_processes,
                cluster.process_id,
                local_device_ids=cluster.local_device_ids,
                cluster_detection_method='deactivate',
                # The service must time out first: it knows which processes are missing.
                initialization_timeout=connect_timeout + 5,
                heartbeat_timeout_seconds=heartbeat_timeout,
            )
        except RuntimeError as error:
            waited = time.monotonic() - began
            raise UserError(explain_failure(cluster, f'{error}\n{read()}', waited)) from error


def explain_failure(cluster: Cluster, output: str, waited: float) -> str:
    """Returns why joining failed, judging by XLA's output."""
    if 'newer incarnation' in output or 'ALREADY_EXISTS' in output:
        return (
            f'another process has the same id {cluster.process_id}; give every process its own '
            f'--process_id from 0 to {cluster.num_processes - 1}'
        )
    names = re.search(r'Some timed out task names:\n((?:\d+\n)+)', output)
    if names:
        lost = ', '.join(sorted(names[1].split(), key=int))
        return (
            f'of {cluster.num_processes} processes these never came in {waited:.0f} s: {lost}; '
            f'see their logs, or raise config.runtime.connect_timeout'
        )
    host = cluster.coordinator.rpartition(':')[0]
    hint = ' (a loopback address, which no other host can reach)' if _is_loopback(host) else ''
    return (
        f'no answer from the coordinator {cluster.coordinator}{hint} in {waited:.0f} s; is process '
        f'0 running there, and is the port open?'
    )


def _checked(given: Mapping[str, str], *, names: Mapping[str, str]) -> Cluster:
    """Returns a cluster from strings, validated; `names` maps the fields to names for errors.

    Raises:
        UserError: a value is invalid.
    """
    for field in ('num_processes', 'process_id'):
        if not given[field].isdecimal() or len(given[field]) > len(str(MOST_PROCESSES)):
            raise UserError(
                f'{names[field]}={given[field][:40]} is not a number from 0 to {MOST_PROCESSES}'
            )
    count, index = int(given['num_processes']), int(given['process_id'])
    if count < 1:
        raise UserError(f'{names["num_processes"]}={count} must be at least 1')
    if index >= count:
        raise UserError(
            f'{names["process_id"]}={index} is out of range: {names["num_processes"]}={count} '
            f'processes have the ids 0 to {count - 1}'
        )
    if not re.fullmatch(r'.+:\d+', given['coordinator']):
        raise UserError(
            f'{names["coordinator"]}={given["coordinator"]} must be HOST:PORT, the host of '
            f'process 0 and a free port there'
        )
    return Cluster(coordinator=given['coordinator'], num_processes=count, process_id=index)


def _detected(environment: Mapping[str, str], *, timeout: int) -> Cluster | None:
    """Returns the cluster that jax detects; None if there is none.

    Raises:
        UserError: jax cannot parse the environment.
    """
    from jax._src.clusters import ClusterEnv  # private, but jax.distributed uses it too

    try:
        coordinator, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, timeout
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(
            f'the environment names a cluster that jax cannot read ({error}); give --coordinator, '
            f'--num_processes and --process_id'
        ) from error
    if coordinator is None or count is None or index is None:
        return None
    if _tasks_per_host(environment) == 1:
        devices = None  # jax would use one device of each host and leave the others idle
    return Cluster(
        coordinator=coordinator,
        num_processes=count,
        process_id=index,
        local_device_ids=None if devices is None else tuple(devices),
        num_hosts=_num_hosts(environment),
    )


def _unless_single(cluster: Cluster | None) -> Cluster | None:
    """Returns the cluster, or None if it has a single process, which has nothing to join."""
    return cluster if cluster is not None and cluster.num_processes > 1 else None


def _tasks_per_host(environment: Mapping[str, str]) -> int | None:
    for name in (
        'SLURM_STEP_TASKS_PER_NODE',
        'SLURM_NTASKS_PER_NODE',
        'OMPI_COMM_WORLD_LOCAL_SIZE',
    ):
        # SLURM writes '1(x4)' for four hosts with one task each, '2,1' for unequal ones.
        if match := re.fullmatch(r'(\d+)(\(x\d+\))?', environment.get(name, '')):
            return int(match[1])
    return None


def _num_hosts(environment: Mapping[str, str]) -> int:
    for name in ('SLURM_STEP_NUM_NODES', 'SLURM_NNODES', 'SLURM_JOB_NUM_NODES'):
        if environment.get(name, '').isdecimal():
            return int(environment[name])
    return len(environment.get('TPU_WORKER_HOSTNAMES', 'one').split(','))


def _is_loopback(host: str) -> bool:
    """Returns whether a host is a loopback address; False for a name that does not resolve."""
    try:
        address = socket.getaddrinfo(host.strip('[]'), None)[0][4][0]
        return ipaddress.ip_address(address.partition('%')[0]).is_loopback
    except (OSError, ValueError):
        return False


def _require_free_port(coordinator: str) -> None:
    """Raises UserError if process 0 cannot listen on the port: jax's service would segfault."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind(('', int(coordinator.rpartition(':')[2])))
            listener.listen()
        except (OSError, OverflowError) as error:
            raise UserError(
                f'cannot listen at {coordinator} ({error}); give --coordinator a port of this host '
                f'that no other program uses'
            ) from error


@contextlib.contextmanager
def _register_timeout(seconds: int) -> Iterator[None]:
    """Sets the coordinator service's registration timeout: only the service names who is missing.

    `jax.distributed.initialize` has no argument for it.
    """
    from jax._src.lib import _jax

    original = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = functools.partial(
        original, cluster_register_timeout=seconds
    )
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = original


@contextlib.contextmanager
def _captured_stderr() -> Iterator:
    """Captures stderr, including C++ output; yields a function that ends it and returns the text.

    jax raises nothing when joining fails: XLA writes the reason to stderr and aborts.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)

        def read() -> str:
            os.dup2(saved, 2)
            file.seek(0)
            return file.read().decode(errors='replace')

        try:
            yield read
        finally:
            os.dup2(saved, 2)
            os.close(saved)
