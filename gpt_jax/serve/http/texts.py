"""The texts of one HTTP request: submitted together, followed, and cancelled together."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Ended, Prompt
from gpt_jax.serve.http.served import ServedModel
from gpt_jax.serve.request import Piece, Request, RequestOptions

FINISH = {Ended.LENGTH: 'length', Ended.END_OF_TEXT: 'stop', Ended.STOP: 'stop'}


class Text:
    """One text, whose pieces are awaited."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.request: Request | None = None  # until it is submitted
        self._loop = loop
        self._wakes = asyncio.Event()
        self._awaits_end = False  # and no single piece

    def notify(self) -> None:
        """Wakes who awaits pieces; called by the worker of the engine."""
        if self._awaits_end and self.request.ended is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server stops
            self._loop.call_soon_threadsafe(self._wakes.set)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yields the pieces as they come.

        Raises:
            ServeError: the request failed after the pieces so far.
        """
        while True:
            self._wakes.clear()
            has_ended = self.request.ended is not None  # before the pieces are taken
            pieces = self.request.poll()
            for piece in pieces:
                yield piece
            if not pieces and has_ended:
                return
            if not pieces:
                await self._wakes.wait()

    async def result(self) -> list[Piece]:
        """Waits for the end; returns all pieces."""
        self._awaits_end = True
        return [piece async for piece in self.pieces()]

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's name of the reason why the text ended."""
        return FINISH.get(self.request.generation.ended)


@contextlib.asynccontextmanager
async def submitted(
    model: ServedModel,
    prompts: Sequence[Prompt],
    sampling: SampleConfig,
    *,
    count: int = 1,
    **options: Any,
) -> AsyncIterator[list[Text]]:
    """Submits `count` texts for each prompt; cancels those that have not ended at the exit.

    Args:
      options: of `RequestOptions`.

    Raises:
        UserError, ServeError: one of them cannot be generated; then none is.
    """
    texts = [Text(asyncio.get_running_loop()) for _ in range(len(prompts) * count)]
    is_left = threading.Event()

    def submit() -> None:
        for index, text in enumerate(texts):
            text.request = model.engine.prepare(
                prompts[index // count],
                sampling,
                RequestOptions(sample=index % count, **options),
                notify=text.notify,
            )
            if is_left.is_set():  # the client is gone, and nobody waits for this thread
                return
        model.engine.enqueue([text.request for text in texts])
        if is_left.is_set():
            cancel()

    def cancel() -> None:
        for text in texts:
            if text.request is not None:
                text.request.cancel()

    try:
        await asyncio.to_thread(submit)  # long prompts take a while to encode
        yield texts
    finally:
        is_left.set()
        cancel()


def usage(texts: Sequence[Text], *, count: int = 1) -> dict[str, Any]:
    """Returns the numbers of tokens; the prompt of `count` texts is counted once."""
    requests = [text.request for text in texts]
    prompt = sum(len(request.prompt) for request in requests[::count])
    drawn = sum(len(request.generation.tokens) for request in requests)
    return {
        'prompt_tokens': prompt,
        'completion_tokens': drawn,
        'total_tokens': prompt + drawn,
        'prompt_tokens_details': {'cached_tokens': sum(each.reused for each in requests[::count])},
    }
