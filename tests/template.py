"""A process that has imported `gpt_jax` and forks a child for each command that tests start.

Importing takes longer than most of what these commands do. A child is a process of its own, with
its own environment, devices, signals and end; only its imports were made before. It begins
before JAX has a backend, so there is nothing in it that does not survive a fork.
"""

import importlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types

ROOT = pathlib.Path(__file__).parents[1]
# Of the time when tests are collected, before any of them changes it.
_ENVIRONMENT = {**os.environ, 'PYTHONPATH': str(ROOT)}
_templates: list[socket.socket] = []  # one, from the first command on


class Command:
    """`python -m gpt_jax.main` with arguments: the part of `subprocess.Popen` that tests use.

    `module` is another one whose `main` takes the arguments.
    """

    def __init__(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        stderr: int = subprocess.STDOUT,
        module: str = 'gpt_jax.main',
    ):
        """The input is empty. With `stderr=PIPE` errors come after the output, not in its lines."""
        if not _templates:
            _templates.append(_start_template())
        # Files, not pipes: a full pipe would stall the command that nobody reads.
        self._files = [tempfile.TemporaryFile('w+') for _ in range(2)]  # noqa: SIM115
        stdout, errors = (file.fileno() for file in self._files)
        environment = dict(os.environ) if environment is None else environment
        request = {'module': module, 'arguments': arguments, 'environment': environment}
        control, theirs = socket.socketpair()
        with control, theirs:
            given = [stdout, stdout if stderr == subprocess.STDOUT else errors, theirs.fileno()]
            socket.send_fds(_templates[0], [json.dumps(request).encode() + b'\n'], given)
            self._control = control.makefile('r')
        self.pid = int(self._control.readline())
        self.returncode: int | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.wait()
        for file in self._files:
            file.close()

    def output(self) -> str:
        """Returns the output so far."""
        # The command writes where the shared position of the file is, so reading must not move it.
        sizes = {file.fileno(): os.fstat(file.fileno()).st_size for file in self._files}
        content = b''.join(os.pread(number, size, 0) for number, size in sizes.items())
        return content.decode(errors='replace').replace('\r\n', '\n').replace('\r', '\n')

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._control], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status when it has ended."""
        if self.returncode is None:
            if not select.select([self._control], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired('gpt_jax.main', timeout)
            with self._control:
                self.returncode = int(self._control.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def _start_template() -> socket.socket:
    """Starts the process to fork from; it ends when the socket is closed, so with this one."""
    ours, theirs = socket.socketpair()
    with theirs:
        subprocess.Popen(
            [sys.executable, '-m', 'tests.template', str(theirs.fileno())],
            cwd=ROOT,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return ours


def _fork_for_each(requests: socket.socket) -> dict:
    """Serves until the tests end. Returns in every child, with the request that it is for."""
    # Ctrl-C is for the tests and their commands; nobody waits for what is forked here.
    for number in (signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        while message and not message.endswith(b'\n'):
            message += requests.recv(1 << 20)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stdout, stderr, control = descriptors
    if child := os.fork():  # the one between waits for the command, and says how it ended
        os.write(control, f'{child}\n'.encode())
        _, status = os.waitpid(child, 0)
        os.write(control, f'{os.waitstatus_to_exitcode(status)}\n'.encode())
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    return json.loads(message)


def _become(request: dict) -> None:
    """Makes this process one that was started with the request's environment and arguments."""
    for name, value in request['environment'].items():
        if name.startswith('JAX_') and value != os.environ.get(name):  # read when imported
            jax.config.update(name.lower(), value)
    os.environ.clear()
    os.environ.update(request['environment'])
    unbuffered = bool(os.environ.get('PYTHONUNBUFFERED'))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=unbuffered or stream is sys.stderr)
    sys.argv[1:] = request['arguments']


def _keep_programs_of_every_process() -> None:
    """Lets every process of a pod keep its compiled programs, which JAX allows the first alone.

    Otherwise the others would compile the same programs in every test.
    """
    first = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
    write = compiler._cache_write
    names = {**vars(compiler), 'distributed': first}
    compiler._cache_write = types.FunctionType(write.__code__, names, write.__name__)


if __name__ == '__main__':
    import jax
    from jax._src import compiler

    from gpt_jax.telemetry import streams

    _keep_programs_of_every_process()
    request = _fork_for_each(socket.socket(fileno=int(sys.argv[1])))
    _become(request)
    streams.protect()
    sys.exit(importlib.import_module(request['module']).main(sys.argv[1:]))
