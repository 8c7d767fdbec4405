"""A lease on a workdir, for storage without locks: an object or file that its holder renews.

The object names its holder and is rewritten every `RENEW_SECONDS`. A process that finds one waits
to see whether it still changes, unless it knows that the holder is dead. If it does not change, the
process takes it over. A holder that finds another name, after losing contact for long, exits.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from gpt_jax import files, object_store
from gpt_jax.errors import UserError

RENEW_SECONDS = 10.0
STALE_SECONDS = 45.0  # a holder that has not renewed for this long counts as dead
TAKEN = 2  # exit status of a holder whose lease was taken over


@contextlib.contextmanager
def hold(path: pathlib.Path, *, report: Callable[[str], None] = print) -> Iterator[None]:
    """Holds the lease `path` while the block runs.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    _wait_until_free(path, report)
    mine = {
        'host': socket.gethostname(),
        'pid_namespace': _pid_namespace(),
        'pid': os.getpid(),
        'token': secrets.token_hex(8),
    }
    files.write_json(path, mine | {'renewed': 0})
    found = _read(path)
    if not _is(found, mine):
        raise _in_use(path, found)
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, mine, ended), name='lease', daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(UserError):
            if _is(_read(path), mine):
                if object_store.is_remote(path):
                    object_store.remove(path)
                else:
                    path.unlink(missing_ok=True)


def _wait_until_free(path: pathlib.Path, report: Callable[[str], None]) -> None:
    """Waits until nobody holds the lease. Raises UserError if its holder is alive."""
    first = _read(path)
    if first is None or _is_dead(first):
        return
    report(
        f'{path} is held by process {first.get("pid")} on {first.get("host")}: waiting up to '
        f'{STALE_SECONDS:.0f} s to see whether it still runs'
    )
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(RENEW_SECONDS / 5)
        found = _read(path)
        if found is None:
            return
        if found != first:
            raise _in_use(path, found)


def _renew(path: pathlib.Path, mine: dict[str, Any], ended: threading.Event) -> None:
    count = 0
    while not ended.wait(RENEW_SECONDS):
        count += 1
        with contextlib.suppress(UserError):  # the store does not answer: retry next time
            found = _read(path)
            if found is not None and not _is(found, mine):
                os.write(2, f'error: {_in_use(path, found)}\n'.encode())
                os._exit(TAKEN)
            files.write_json(path, mine | {'renewed': count})


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the contents of the object; None if it does not exist, {} if it is half-written."""
    try:
        return dict(json.loads(object_store.read_bytes(path)))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError):  # half-written: not every disk replaces files atomically
        return {}


def _is(found: dict[str, Any] | None, mine: dict[str, Any]) -> bool:
    return found is not None and found.get('token') == mine['token']


def _is_dead(holder: dict[str, Any]) -> bool:
    """Returns whether the holder was a process of this machine and has ended."""
    here = (socket.gethostname(), _pid_namespace())
    if (holder.get('host'), holder.get('pid_namespace')) != here or not here[1]:
        return False
    try:
        os.kill(holder['pid'], 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError):
        return False
    return holder['pid'] == os.getpid()  # a reused pid, such as 1 in containers


def _pid_namespace() -> str:
    """Returns the id of this container's pid namespace; '' if unknown."""
    try:
        return os.readlink('/proc/self/ns/pid')
    except OSError:
        return ''


def _in_use(path: pathlib.Path, holder: dict[str, Any] | None) -> UserError:
    holder = holder or {}
    return UserError(
        f'--workdir={path.parent} is in use by process {holder.get("pid", "?")} on '
        f'{holder.get("host", "?")}; wait for it to end or choose another --workdir'
    )
