"""Work in a thread, one piece at a time."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from gpt_jax.serve.http.errors import ApiError

T = TypeVar('T')


class LatestNext:
    """A queue of one: of the requests that wait, the latest is next and the others are refused."""

    def __init__(self):
        self._is_busy = False
        self._waiting: asyncio.Future[None] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Returns the result of `work`, which runs to its end even if the caller is cancelled.

        Raises:
            ApiError: a later request took the place of this one.
        """
        while self._is_busy:
            if self._waiting is not None and not self._waiting.done():
                message = 'a later question was asked before this one had its turn; ask again'
                self._waiting.set_exception(ApiError(409, message, code='superseded'))
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        self._is_busy = True
        task = asyncio.ensure_future(asyncio.to_thread(work))
        task.add_done_callback(self._end)
        return await asyncio.shield(task)

    def _end(self, task: asyncio.Task) -> None:
        """Gives the turn to the request that waits."""
        task.cancelled() or task.exception()  # read, so that no warning says it was not
        self._is_busy = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
