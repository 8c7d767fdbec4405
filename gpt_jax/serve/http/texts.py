"""The texts of one HTTP request: submitted together, followed, and cancelled together."""

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.responses import Response

from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Ended, Prompt
from gpt_jax.serve.http.errors import ApiError
from gpt_jax.serve.http.served import ServedModel
from gpt_jax.serve.http.work import perform
from gpt_jax.serve.request import Piece, Request, RequestOptions, RequestTimeoutError

MOST_UNREAD = 4096  # tokens of a stream that wait for its client
FINISH = {Ended.LENGTH: 'length', Ended.END_OF_TEXT: 'stop', Ended.STOP: 'stop'}


class Text:
    """One text; a stream takes its pieces as they come, others wait for its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, is_stream: bool):
        self.request: Request | None = None  # until it is submitted
        self._is_stream = is_stream
        self._loop = loop
        self._wakes = asyncio.Event()

    def notify(self) -> None:
        """Wakes who awaits pieces; called by the worker of the engine."""
        if not self._is_stream and self.request.ended is None:
            return
        if self._is_stream and self.request.unread > MOST_UNREAD:
            late = f'the client reads too slowly: {self.request.unread} tokens wait for it'
            self.request.cancel(RequestTimeoutError(late))
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
    is_stream: bool = False,
    **options: Any,
) -> AsyncIterator[list[Text]]:
    """Submits `count` texts for each prompt; cancels those that have not ended at the exit.

    Args:
      is_stream: pieces are taken as they come; a text whose pieces are not taken fails.
      options: of `RequestOptions`.

    Raises:
        UserError, ServeError: one of them cannot be generated; then none is.
        ApiError: the response would be too large.
    """
    loop = asyncio.get_running_loop()
    texts = [Text(loop, is_stream=is_stream) for _ in range(len(prompts) * count)]
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
        requests = [text.request for text in texts]
        limit = model.engine.config.max_response_tokens
        if (asked := sum(request.most_scores for request in requests)) > limit:
            raise ApiError(
                400,
                f'max_tokens, n, prompts and logprobs make {asked:,} tokens and alternatives, more '
                f'than config.serve.max_response_tokens={limit:,}; ask for less',
                param='max_tokens',
            )
        model.engine.enqueue(requests)
        if is_left.is_set():
            cancel()

    def cancel() -> None:
        for text in texts:
            if text.request is not None:
                text.request.cancel()

    try:
        size = math.inf if options.get('schema') else count * sum(map(len, prompts))
        await perform(submit, size=size)  # long prompts, and schemas, take a while
        yield texts
    finally:
        is_left.set()
        cancel()


async def written(
    texts: list[Text], write: Callable[[list[Text], list[list[Piece]]], Response]
) -> Response:
    """Waits for the texts; returns what `write` makes of them and their pieces."""
    results = [await text.result() for text in texts]
    size = sum(text.request.most_scores for text in texts)
    return await perform(write, texts, results, size=size)


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
