"""Responses that end with their client: streams of events, and answers that are waited for."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gpt_jax.serve.http.errors import explain

CLIENT_GONE = 499  # nobody sees this status but the log
Send = Callable[[dict], Awaitable[None]]


async def _disconnected(receive: Callable[[], Awaitable[dict]]) -> None:
    while (await receive())['type'] != 'http.disconnect':
        pass


async def _first(work: Awaitable[Any], receive: Callable[[], Awaitable[dict]]) -> Any:
    """Returns the result of `work`; cancels it and returns None if the client is gone before."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each


async def answer(request: Request, work: Awaitable[Response]) -> Response:
    """Returns what `work` makes, which is cancelled if the client hangs up."""
    return await _first(work, request.receive) or Response(status_code=CLIENT_GONE)


class EventStream(Response):
    """Server-sent events: one for each JSON value, then `[DONE]`.

    A client that hangs up, or that takes nothing for `patience` seconds, ends the stream.
    An error after the start is the last event.
    """

    media_type = 'text/event-stream'

    def __init__(self, values: AsyncIterator[Any], *, patience: float):
        super().__init__(headers={'Cache-Control': 'no-cache'})
        del self.headers['content-length']
        self._values = values
        self._patience = patience

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Sends the events."""
        await send(
            {
                'type': 'http.response.start',
                'status': self.status_code,
                'headers': self.raw_headers,
            }
        )
        await _first(self._send_all(send), receive)

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._values) as values:
            try:
                async for value in values:
                    await self._send(send, f'data: {json.dumps(value)}\n\n')
            except TimeoutError:
                return
            except Exception as error:
                await self._send(send, f'data: {json.dumps(explain(error).body)}\n\n')
            await self._send(send, 'data: [DONE]\n\n')
        await send({'type': 'http.response.body', 'body': b'', 'more_body': False})

    async def _send(self, send: Send, text: str) -> None:
        event = {'type': 'http.response.body', 'body': text.encode(), 'more_body': True}
        # Not wait_for, which can lose a cancellation on Python 3.11.
        async with asyncio.timeout(self._patience):
            await send(event)
