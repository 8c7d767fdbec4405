"""Several asynchronous iterators as one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar('T')


async def merged(iterators: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T | None]]:
    """Yields (index, value) of whichever iterator has one; (index, None) at the end of each.

    Raises:
        Exception: that of the first iterator that fails; the others are cancelled.
    """
    waiting = {
        asyncio.ensure_future(anext(iterator, None)): index
        for index, iterator in enumerate(iterators)
    }
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.get):
                index, value = waiting.pop(task), task.result()
                yield index, value
                if value is not None:
                    waiting[asyncio.ensure_future(anext(iterators[index], None))] = index
    finally:
        for task in waiting:
            task.cancel()
