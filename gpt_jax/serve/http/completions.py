"""`/v1/completions`: texts that continue prompts."""

import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from gpt_jax.serve.http.bodies import CompletionBody
from gpt_jax.serve.http.errors import ApiError
from gpt_jax.serve.http.merged import merged
from gpt_jax.serve.http.served import ServedModel
from gpt_jax.serve.http.texts import Text, submitted, usage, written
from gpt_jax.serve.request import Piece, Score

MAX_TOKENS = 16  # OpenAI's default


class Completions:
    """The answer to one request for completions."""

    def __init__(self, body: CompletionBody, model: ServedModel):
        self._body = body
        self._model = model
        self._count = body.n or 1
        self._max_tokens = MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if not self._max_tokens and not body.echo:
            raise ApiError(400, 'max_tokens=0 needs echo: true', param='max_tokens')
        self._head = {
            'id': f'cmpl-{uuid.uuid4().hex}',
            'object': 'text_completion',
            'created': int(time.time()),
            'model': model.name,
            'system_fingerprint': model.fingerprint,
        }

    def _submitted(self) -> contextlib.AbstractAsyncContextManager[list[Text]]:
        body = self._body
        return submitted(
            self._model,
            body.prompts,
            body.sampling(max_tokens=self._max_tokens),
            count=self._count,
            is_stream=bool(body.stream),
            bias=body.bias,
            schema=body.text_schema,
            best=body.best,
            scores_prompt=bool(body.echo) and body.logprobs is not None,
            draws=self._max_tokens > 0,
            use_cache=body.use_cache is not False,
        )

    async def whole(self) -> Response:
        """Returns the response, when all texts have ended."""
        async with self._submitted() as texts:
            return await written(texts, self._response)

    def _response(self, texts: list[Text], results: list[list[Piece]]) -> Response:
        choices = []
        for index, (text, pieces) in enumerate(zip(texts, results, strict=True)):
            writer = self._writer(text)
            beginning = self._beginning(text, writer)
            pieces = [beginning, *pieces] if beginning else pieces
            choices.append(self._choice(index, text, pieces, writer, is_last=True))
        counts = usage(texts, count=self._count)
        return JSONResponse({**self._head, 'choices': choices, 'usage': counts})

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the parts of a stream; the texts take turns as they come."""
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        more = {'usage': None} if with_usage else {}
        async with self._submitted() as texts:
            yield {}  # submitted: errors until here have a status of their own
            writers = [self._writer(text) for text in texts]
            begun = [not self._body.echo] * len(texts)
            async for index, piece in merged([text.pieces() for text in texts]):
                text, writer = texts[index], writers[index]
                if not begun[index]:
                    begun[index] = True
                    beginning = self._beginning(text, writer)
                    choice = self._choice(index, text, [beginning], writer, is_last=False)
                    yield {**self._head, 'choices': [choice], **more}
                pieces = [] if piece is None else [piece]
                choice = self._choice(index, text, pieces, writer, is_last=piece is None)
                yield {**self._head, 'choices': [choice], **more}
            if with_usage:
                yield {**self._head, 'choices': [], 'usage': usage(texts, count=self._count)}

    def _writer(self, text: Text) -> '_Logprobs | None':
        return None if self._body.logprobs is None else _Logprobs(self._model, text)

    def _beginning(self, text: Text, writer: '_Logprobs | None') -> Piece | None:
        """Returns the prompt as a first piece, if it is to be repeated."""
        if not self._body.echo:
            return None
        request = text.request
        scores = [Score(float('nan'), []), *request.prompt_scores] if writer else []
        return Piece(request.generation.prompt, request.prompt, scores)

    def _choice(
        self,
        index: int,
        text: Text,
        pieces: Sequence[Piece],
        writer: '_Logprobs | None',
        *,
        is_last: bool,
    ) -> dict[str, Any]:
        choice = {
            'index': index,
            'text': ''.join(piece.text for piece in pieces),
            'logprobs': writer and writer.write(pieces, self._body),
            'finish_reason': text.finish_reason if is_last else None,
        }
        if self._body.return_token_ids:
            choice['ended'] = text.request.generation.ended if is_last else None
        return choice


class _Logprobs:
    """Writes the log-probabilities of one text, piece by piece."""

    def __init__(self, model: ServedModel, text: Text):
        self._model = model
        self._stream = model.tokenizer.stream()
        self._prompt = text.request.prompt
        self._offset: int | None = None  # characters before the next token

    def write(self, pieces: Sequence[Piece], body: CompletionBody) -> dict[str, list]:
        """Returns the arrays of OpenAI's `logprobs` for these pieces.

        With `return_token_ids` there is also `content`, with an entry for each token.
        """
        if self._offset is None:
            # Offsets count the prompt, whether it is repeated or not.
            self._offset = 0 if body.echo else len(self._stream.push(self._prompt))
        tokens = list(itertools.chain.from_iterable(piece.tokens for piece in pieces))
        scores = list(itertools.chain.from_iterable(piece.scores for piece in pieces))
        seconds = [piece.seconds for piece in pieces for _ in piece.tokens]
        texts = [self._stream.push([token]) for token in tokens]
        ends = list(itertools.accumulate(map(len, texts), initial=self._offset))
        self._offset = ends.pop()
        found = {
            'tokens': self._model.token_texts(tokens),
            'token_logprobs': [_number(score.logprob) for score in scores],
            'top_logprobs': [self._best(score) for score in scores],
            'text_offset': ends,
        }
        if body.return_token_ids:
            found['content'] = [
                {
                    **self._entry(token, score.logprob),
                    'text': text,
                    'alternatives': [self._entry(*each) for each in score.best],
                    'seconds': took,
                }
                for token, score, text, took in zip(tokens, scores, texts, seconds, strict=True)
            ]
        return found

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        label = self._model.token_text(token)
        return {'id': token, 'label': label, 'logprob': _number(logprob)}

    def _best(self, score: Score) -> dict[str, float] | None:
        if score.logprob != score.logprob:  # the first token of a prompt
            return None
        best: dict[str, float] = {}
        for token, logprob in score.best:
            best.setdefault(self._model.token_text(token), logprob)
        return best


def _number(logprob: float) -> float | None:
    """Returns a log-probability as JSON has it; NaN, of the first token of a prompt, is None."""
    return None if logprob != logprob else max(logprob, -9999.0)
