"""Work that the event loop does itself where it is little, and a thread where it is not."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

LITTLE = 4096  # characters or tokens, which take about as long as going to a thread and back
T = TypeVar('T')


async def perform(work: Callable[..., T], *arguments: Any, size: float) -> T:
    """Returns the result of `work`; `size` is about the number of characters or tokens in it."""
    if size <= LITTLE:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
