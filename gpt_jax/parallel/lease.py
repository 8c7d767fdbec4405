"""Who writes in a workdir without locks: an object in its store, or a file, that is renewed.

The object names its writer and changes every `RENEW_SECONDS`. A process that finds one waits to
see whether it still changes, unless it can tell that its writer is dead, and takes it over if it
does not. A writer that finds another's name in it, because it was cut off for that long, ends.
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
STALE_SECONDS = 45.0  # without a change, after which the writer counts as dead
TAKEN = 2  # exit status of a writer that was taken for dead


@contextlib.contextmanager
def hold(path: pathlib.Path, *, report: Callable[[str], None] = print) -> Iterator[None]:
    """Holds the object `path` while the block runs.

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
    """Returns when nobody holds the object. Raises UserError when somebody does."""
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
        with contextlib.suppress(UserError):  # the store does not answer: again next time
            found = _read(path)
            if found is not None and not _is(found, mine):
                os.write(2, f'error: {_in_use(path, found)}\n'.encode())
                os._exit(TAKEN)
            files.write_json(path, mine | {'renewed': count})


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """What the object says; None if it is not there."""
    try:
        return dict(json.loads(object_store.read_bytes(path)))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError):  # torn, on a disk that does not replace files whole
        return {}


def _is(found: dict[str, Any] | None, mine: dict[str, Any]) -> bool:
    return found is not None and found.get('token') == mine['token']


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is known to run no more: it was a process of this very machine."""
    here = (socket.gethostname(), _pid_namespace())
    if (holder.get('host'), holder.get('pid_namespace')) != here or not here[1]:
        return False
    try:
        os.kill(holder['pid'], 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError):
        return False
    return holder['pid'] == os.getpid()  # a number that came again, as 1 does in containers


def _pid_namespace() -> str:
    """What tells process numbers of one container from those of another; '' if unknown."""
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
