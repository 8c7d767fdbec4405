"""One line instead of a core dump, where XLA ends the process and the reason is known.

jax's C++ client calls `abort` when it cannot join the other processes or when the coordinator is
gone. No Python exception is raised and no Python signal handler runs, so the handler is C's.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_installed: list = []  # a handler must outlive the C library's pointer to it


def install(message: Callable[[], str | None], *, status: int) -> None:
    """From now on `abort` writes `message()`, unless it is None, and exits with `status`."""

    def handle(_: int) -> None:
        try:
            line = message()
            if line is not None:
                os.write(2, f'{line}\n'.encode())
        finally:
            os._exit(status)

    handler = _Handler(handle)
    _installed.append(handler)
    _set(ctypes.cast(handler, ctypes.c_void_p))


@contextlib.contextmanager
def installed(message: Callable[[], str | None], *, status: int) -> Iterator[None]:
    """`install` while the block runs; `abort` dumps again afterwards."""
    install(message, status=status)
    try:
        yield
    finally:
        _set(ctypes.c_void_p(int(signal.SIG_DFL)))


def _set(handler: ctypes.c_void_p) -> None:
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), handler)
