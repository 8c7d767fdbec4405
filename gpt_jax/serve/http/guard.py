"""Limits on who may ask, and how much: keys, hosts, content types, and sizes of bodies."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.datastructures import Headers

from gpt_jax.serve.http.errors import ApiError

HEADER_BYTES = 16384
BODY_SECONDS = 30.0  # in which a body must arrive

App = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """ASGI middleware that refuses requests before any route sees them.

    The whole body is read here, so that routes get it at once. Without keys the server listens to
    its own machine only. There, a page of another site must not reach it: such pages can send
    what a form could, which excludes JSON, and may have a name that resolves to this machine.
    """

    def __init__(
        self,
        app: App,
        *,
        keys: Sequence[str],
        hosts: Sequence[str],
        max_body: int,
        open_paths: Sequence[str],
    ):
        """Takes the keys, of which one must be given; no keys: `hosts` may be addressed.

        `open_paths` need neither.
        """
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._hosts = hosts
        self._max_body = max_body
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it with an error."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            body = await self._read(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:  # the client is gone
            return
        await self._app(scope, _replayed(body, receive), send)

    def _check(self, scope: Any) -> None:
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in headers.raw) > HEADER_BYTES:
            raise ApiError(431, f'the headers are larger than {HEADER_BYTES:,} bytes')
        if scope['path'] not in self._open_paths:
            self._authenticate(headers)
        if scope['method'] == 'POST':
            kind = headers.get('content-type', '').partition(';')[0].strip().lower()
            if kind != 'application/json':
                raise ApiError(415, 'send JSON, with Content-Type: application/json')
            length = headers.get('content-length', '0')
            if length.isascii() and length.isdigit() and int(length[:20]) > self._max_body:
                raise self._too_large()

    def _authenticate(self, headers: Headers) -> None:
        if self._keys:
            scheme, _, key = headers.get('authorization', '').partition(' ')
            given = key.strip().encode()
            known = [hmac.compare_digest(given, each) for each in self._keys]
            if scheme.lower() != 'bearer' or not any(known):
                raise ApiError(
                    401,
                    'give a key of --api_key_file, with Authorization: Bearer KEY',
                    code='invalid_api_key',
                    headers={'WWW-Authenticate': 'Bearer'},
                )
            return
        host = headers.get('host', '')
        name = host[: host.find(']') + 1] if host.startswith('[') else host.partition(':')[0]
        if name.lower() not in self._hosts:
            raise ApiError(421, f'the host {name[:100]!r} is not this server')

    async def _read(self, scope: Any, receive: Any) -> bytes | None:
        """Returns the body; None if the client is gone."""
        body = b''
        more = scope['method'] in ('POST', 'PUT', 'PATCH')
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message['type'] == 'http.disconnect':
                        return None
                    body += message.get('body', b'')
                    if len(body) > self._max_body:
                        raise self._too_large()
                    more = message.get('more_body', False)
        except TimeoutError:
            raise ApiError(408, f'the body did not arrive in {BODY_SECONDS:g} s') from None
        return body

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f'the body is larger than {self._max_body:,} bytes (config.serve.max_body_bytes)'
        )


def _replayed(body: bytes, receive: Any) -> Callable[[], Awaitable[dict]]:
    """Returns a `receive` that gives the body first, and then what the server says."""
    waiting = [{'type': 'http.request', 'body': body, 'more_body': False}]

    async def replay() -> dict:
        return waiting.pop() if waiting else await receive()

    return replay
