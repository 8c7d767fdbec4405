"""The server: listens at once, serves when the models are ready, and ends without losing texts."""

import asyncio
import ipaddress
import math
import pathlib
import socket
import threading
import urllib.parse
from collections.abc import Callable, Sequence

import uvicorn

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.serve.config import ServeConfig
from gpt_jax.serve.http.app import Api, make_app
from gpt_jax.serve.http.guard import HEADER_BYTES
from gpt_jax.serve.http.served import ServedModels

LEAST_KEY = 16  # characters
LAST_SECONDS = 5.0  # in which clients take the error of a text that the end of the server cuts


def read_keys(path: pathlib.Path | None) -> list[str]:
    """Returns the keys in a file, one per line; none without a file.

    Raises:
        UserError: the file cannot be read, has no key, or one that is too short.
    """
    if path is None:
        return []
    keys = [line.strip() for line in files.read_text(path).splitlines() if line.strip()]
    if not keys:
        raise UserError(f'--api_key_file={path} has no key; write one per line')
    if any(len(key) < LEAST_KEY or not key.isascii() or ' ' in key for key in keys):
        raise UserError(
            f'--api_key_file={path}: a key must have {LEAST_KEY} or more ASCII characters and no '
            'spaces; `openssl rand -hex 24` makes one'
        )
    return keys


def read_origins(given: Sequence[str]) -> list[str]:
    """Returns origins as browsers send them; `*` is every one.

    Raises:
        UserError: one is no origin.
    """
    origins = []
    for each in given:
        parts = urllib.parse.urlsplit(each.rstrip('/'))
        has_more = parts.path or parts.query or parts.fragment or '@' in parts.netloc
        if each != '*' and (parts.scheme not in ('http', 'https') or not parts.netloc or has_more):
            raise UserError(f'--cors={each} is no origin; give one as https://example.org:8080')
        origins.append(each.rstrip('/').lower())
    return origins


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; port 0: a free one.

    Raises:
        UserError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f'--host={host} --port={port}: {error}') from error


class _Draining(uvicorn.Server):
    """A server whose texts may end when it stops; after `drain_seconds` they fail."""

    def __init__(self, settings: uvicorn.Config, api: Api, *, drain_seconds: float):
        super().__init__(settings)
        self._api = api
        self._drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for the requests; their clients get an error if it is too long."""
        ending = asyncio.ensure_future(self._end_texts())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_texts(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        reason = (
            f'the server stops, and waited {self._drain_seconds:g} s (config.serve.drain_seconds)'
        )
        for model in self._api.models or ():
            await asyncio.to_thread(model.engine.close, reason)


class HttpServer:
    """A server at a socket."""

    def __init__(
        self, listener: socket.socket, config: ServeConfig, *, keys: list[str], origins: list[str]
    ):
        """Takes what `make_app` does."""
        self._listener = listener
        self._api = Api()
        settings = uvicorn.Config(
            make_app(self._api, config, keys=keys, origins=origins),
            http='h11',
            ws='none',
            lifespan='off',
            server_header=False,
            log_level='warning',
            timeout_keep_alive=30,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=math.ceil(config.drain_seconds + LAST_SECONDS),
        )
        self._server = _Draining(settings, self._api, drain_seconds=config.drain_seconds)

    def run(
        self, load: Callable[[], ServedModels], announce: Callable[[ServedModels], None]
    ) -> None:
        """Serves until SIGINT, SIGTERM or `stop`; texts that have begun may end first.

        Args:
          load: makes the models, in a thread of its own.
          announce: called when they are ready.

        Raises:
            Exception: that of `load`.
        """
        failures: list[BaseException] = []

        def prepare() -> None:
            try:
                models = load()
                self._api.ready(models)
                announce(models)
            except BaseException as error:
                failures.append(error)
                self.stop()

        threading.Thread(target=prepare, name='load', daemon=True).start()
        try:
            self._server.run(sockets=[self._listener])
        finally:
            for model in self._api.models or ():
                model.engine.close()
        if failures:
            raise failures[0]

    def stop(self) -> None:
        """Ends `run`, as a signal does; may be called from any thread."""
        self._server.should_exit = True
