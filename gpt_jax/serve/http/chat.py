"""`/v1/chat/completions`: answers to conversations."""

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from gpt_jax.serve.http.bodies import ChatBody
from gpt_jax.serve.http.merged import merged
from gpt_jax.serve.http.served import ServedModel
from gpt_jax.serve.http.texts import Text, submitted, usage, written
from gpt_jax.serve.request import Piece


class Chat:
    """The answer to one request for the next message of a conversation."""

    def __init__(self, body: ChatBody, model: ServedModel):
        """Encodes the conversation.

        Raises:
            UserError: the template refuses the messages.
        """
        self._body = body
        self._model = model
        self._count = body.n or 1
        self._prompt = model.encode_chat(body.messages)
        self._head = {
            'id': f'chatcmpl-{uuid.uuid4().hex}',
            'created': int(time.time()),
            'model': model.name,
            'system_fingerprint': model.fingerprint,
        }

    def _submitted(self) -> contextlib.AbstractAsyncContextManager[list[Text]]:
        body = self._body
        # Without a limit, an answer ends where the context does, or the response may not be longer.
        most = self._model.engine.config.max_response_tokens // (self._count * (1 + body.best))
        room = max(1, min(self._model.context - len(self._prompt), most))
        return submitted(
            self._model,
            [self._prompt],
            body.sampling(max_tokens=body.max_completion_tokens or body.max_tokens or room),
            count=self._count,
            is_stream=bool(body.stream),
            bias=body.bias,
            schema=body.text_schema,
            best=body.best,
        )

    async def whole(self) -> Response:
        """Returns the response, when all texts have ended."""
        async with self._submitted() as texts:
            return await written(texts, self._response)

    def _response(self, texts: list[Text], results: list[list[Piece]]) -> Response:
        choices = []
        for index, (text, pieces) in enumerate(zip(texts, results, strict=True)):
            content = ''.join(piece.text for piece in pieces)
            choices.append(
                {
                    'index': index,
                    'message': {'role': 'assistant', 'content': content, 'refusal': None},
                    'logprobs': self._logprobs(pieces),
                    'finish_reason': text.finish_reason,
                }
            )
        counts = usage(texts, count=self._count)
        return JSONResponse(
            {**self._head, 'object': 'chat.completion', 'choices': choices, 'usage': counts}
        )

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the parts of a stream; the texts take turns as they come."""
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        head = {**self._head, 'object': 'chat.completion.chunk'}

        def chunk(index: int, delta: dict[str, Any], pieces: Sequence[Piece], reason: str | None):
            choice = {
                'index': index,
                'delta': delta,
                'logprobs': self._logprobs(pieces) if pieces else None,
                'finish_reason': reason,
            }
            return {**head, 'choices': [choice], **({'usage': None} if with_usage else {})}

        async with self._submitted() as texts:
            yield {}  # submitted: errors until here have a status of their own
            for index in range(len(texts)):
                yield chunk(index, {'role': 'assistant', 'content': ''}, [], None)
            async for index, piece in merged([text.pieces() for text in texts]):
                if piece is None:
                    yield chunk(index, {}, [], texts[index].finish_reason)
                else:
                    yield chunk(index, {'content': piece.text}, [piece], None)
            if with_usage:
                yield {**head, 'choices': [], 'usage': usage(texts, count=self._count)}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        content = []
        for piece in pieces:
            for token, score in zip(piece.tokens, piece.scores, strict=True):
                best = [self._entry(*each) for each in score.best]
                content.append({**self._entry(token, score.logprob), 'top_logprobs': best})
        return {'content': content, 'refusal': None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            'token': self._model.token_text(token),
            'logprob': max(logprob, -9999.0),
            'bytes': [*self._model.tokenizer.id_to_bytes(token)],
        }
