"""Handler of SIGABRT that prints one line instead of a core dump when XLA aborts the process.

jax's C++ client calls `abort` when it cannot join the other processes or loses the coordinator.
No Python exception is raised and no Python signal handler runs, so the handler is set in C.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_installed: list = []  # a handler must outlive the C library's pointer to it


def install(message: Callable[[], str | None], *, status: int) -> None:
    """Makes `abort` write `message()`, unless it is None, and exit with `status`."""

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
    """Installs the handler while the block runs, then restores the default."""
    install(message, status=status)
    try:
        yield
    finally:
        _set(ctypes.c_void_p(int(signal.SIG_DFL)))


def _set(handler: ctypes.c_void_p) -> None:
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), handler)
