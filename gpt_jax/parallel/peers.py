"""Coordination of the processes of a run, and detection of lost ones.

Everything goes through the coordination service that `jax.distributed` starts; this module adds no
communication layer. In a single-process run every function returns at once.
"""

import collections
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # private API; orbax uses it too

from gpt_jax.errors import UserError
from gpt_jax.parallel import abort_handler

# Exit status EX_TEMPFAIL, as after SIGTERM: the same command resumes from the last checkpoint.
LOST = 75
BARRIER_SECONDS = 120  # for processes that should arrive together; longer work polls instead
_POLL_SECONDS = 1.0
_PREFIX = 'gpt_jax'

_uses: collections.Counter[str] = collections.Counter()  # barriers and keys work only once
_ending = threading.Event()  # once set, the loss of a peer is expected
_watched_seconds = 0.0  # time after which a loss has been detected


def num_processes() -> int:
    """Returns the number of processes of this run; starts no backend."""
    return distributed.global_state.num_processes if jax.distributed.is_initialized() else 1


def process_id() -> int:
    """Returns the index of this process; starts no backend."""
    return distributed.global_state.process_id if jax.distributed.is_initialized() else 0


def is_primary() -> bool:
    """Returns whether this is process 0, which prints and writes the run's files."""
    return process_id() == 0


def barrier(name: str, *, seconds: int = BARRIER_SECONDS) -> None:
    """Waits for all processes. All must call it, in the same order.

    Raises:
        UserError: some did not arrive in time.
    """
    if num_processes() == 1:
        return
    try:
        _client().wait_at_barrier(_unique(name), seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        _wait_for_word(error)
        raise UserError(
            f'not all {num_processes()} processes came to {name!r} within {seconds} s; see the '
            f'last lines of each'
        ) from error


def gather(name: str, value: Any, *, seconds: int = BARRIER_SECONDS) -> list[Any]:
    """Returns the JSON `value` of every process, by index; all must call it, in the same order.

    Raises:
        UserError: a process did not send its value in time.
    """
    if num_processes() == 1:
        return [value]
    key = _unique(name)
    _client().key_value_set(f'{key}/{process_id()}', json.dumps(value))
    return [json.loads(_wait_for(f'{key}/{i}', i, name, seconds)) for i in range(num_processes())]


def any_of(name: str, problem: str | None) -> str | None:
    """Returns the first problem of any process, prefixed with its index; None if there is none."""
    for index, each in enumerate(gather(name, problem)):
        if each is not None:
            return each if num_processes() == 1 else f'process {index}: {each}'
    return None


def announce(name: str, value: Any) -> None:
    """Publishes a value under a unique name, for `announced`."""
    _client().key_value_set(f'{_PREFIX}/{name}', json.dumps(value))


def announced(name: str) -> Any | None:
    """Returns the value that another process announced under `name`; None if there is none yet."""
    try:
        return json.loads(_client().key_value_try_get(f'{_PREFIX}/{name}'))
    except jax.errors.JaxRuntimeError:  # NOT_FOUND
        return None


def announce_failure(status: int, message: str) -> None:
    """Tells the other processes why this one ends; they end with the same status."""
    announce(f'failed/{process_id()}', {'status': status, 'message': message})


@contextlib.contextmanager
def only_primary_prints() -> Iterator[None]:
    """Discards the standard output of all processes except what process 0 prints from Python.

    The output of C++ libraries is discarded too (gloo writes from several threads at once).
    Standard error is kept.
    """
    if num_processes() == 1:
        yield
        return
    _flush()
    with (
        open(os.devnull, 'w', encoding='utf-8') as nowhere,
        open(
            os.dup(1), 'w', buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors
        ) as printed,
    ):
        os.dup2(nowhere.fileno(), 1)
        try:
            with contextlib.redirect_stdout(printed if is_primary() else nowhere):
                yield
        finally:
            os.dup2(printed.fileno(), 1)


def watch(heartbeat_timeout: int) -> None:
    """Starts a thread that ends this process, with a one-line error, when another one is lost."""
    global _watched_seconds
    _watched_seconds = heartbeat_timeout + 5 * _POLL_SECONDS
    abort_handler.install(lambda: _obituary([0], {}), status=LOST)
    threading.Thread(target=_watch, name='peers', daemon=True).start()


def leave(status: int) -> None:
    """Ends a successful run together with the other processes."""
    if num_processes() == 1:
        return
    _flush()
    # A process may still have much to write. The watch thread notices one that fails meanwhile.
    barrier('finished', seconds=24 * 3600)
    _ending.set()
    # The service ends with process 0; the others must not report that as a loss.
    abort_handler.install(lambda: None, status=status)
    with contextlib.suppress(UserError):
        barrier('leave', seconds=10)
    if not is_primary():
        os._exit(status)
    jax.distributed.shutdown()


def fail(status: int, message: str) -> None:
    """Ends this process after its own error; the others report the error and use its status.

    If the service is gone, process 0 was lost first and this error is a consequence. Then this
    process reports the loss of process 0 instead.
    """
    _ending.set()
    _flush()
    try:
        announce_failure(status, message)
    except jax.errors.JaxRuntimeError:
        if not is_primary():
            _end_after_loss([0], {})
    abort_handler.install(lambda: None, status=status)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if is_primary():
            time.sleep(3 * _POLL_SECONDS)  # the service, which holds the reason, ends with it
        else:
            _client().shutdown()
    os._exit(status)


def wait_for_termination() -> None:
    """Waits, after a failed collective, for the watch thread to find the lost process and exit."""
    time.sleep(_watched_seconds)


def _watch() -> None:
    everyone = set(range(num_processes()))
    while not _ending.is_set():
        try:
            lost = everyone - set(_client().get_live_nodes(sorted(everyone)))
            said = {i: announced(f'failed/{i}') for i in everyone - {process_id()}}
        except (jax.errors.JaxRuntimeError, AttributeError):  # the service or the client is gone
            lost, said = {0}, {}
        said = {i: failure for i, failure in said.items() if failure}
        lost |= said.keys()
        if lost and not _ending.is_set():
            _end_after_loss(sorted(lost), said)
        time.sleep(_POLL_SECONDS)


def _end_after_loss(lost: list[int], said: Mapping[int, dict[str, Any]]) -> None:
    """Exits with the status of the first lost process that announced one, otherwise with `LOST`."""
    _flush()
    os.write(2, f'{_obituary(lost, said)}\n'.encode())
    os._exit(next((said[i]['status'] for i in lost if i in said), LOST))


def _obituary(lost: list[int], said: Mapping[int, dict[str, Any]]) -> str:
    """Returns the line that names the lost processes and, if announced, the reasons."""
    told = [f'process {i} ended: {said[i]["message"]}' for i in lost if i in said]
    silent = [str(i) for i in lost if i not in said]
    if silent:
        told.append(
            f'lost process {", ".join(silent)} (killed, crashed or cut off); the same command goes '
            f'on from the last checkpoint'
        )
    return f'error: process {process_id()}: ' + '; '.join(told)


def _wait_for(key: str, index: int, name: str, seconds: int) -> str:
    try:
        return _client().blocking_key_value_get(key, seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        _wait_for_word(error)
        raise UserError(
            f'process {index} did not come to {name!r} within {seconds} s; see its last lines'
        ) from error


def _wait_for_word(error: jax.errors.JaxRuntimeError) -> None:
    """Waits for the watch thread to report the lost process, unless the wait just timed out."""
    if 'DEADLINE_EXCEEDED' not in str(error) and not _ending.is_set():
        wait_for_termination()


def _unique(name: str) -> str:
    _uses[name] += 1
    return f'{_PREFIX}/{name}/{_uses[name]}'


def _client() -> Any:
    return distributed.global_state.client


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
