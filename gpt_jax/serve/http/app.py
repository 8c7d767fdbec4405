"""The routes of the server."""

import asyncio
import mimetypes
import pathlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gpt_jax.inference.generate import encode_prompt
from gpt_jax.serve.config import ServeConfig
from gpt_jax.serve.http import bodies
from gpt_jax.serve.http.chat import Chat
from gpt_jax.serve.http.completions import Completions
from gpt_jax.serve.http.embeddings import embed
from gpt_jax.serve.http.errors import ApiError, explain
from gpt_jax.serve.http.events import EventStream, answer
from gpt_jax.serve.http.guard import Guard
from gpt_jax.serve.http.latest_next import LatestNext
from gpt_jax.serve.http.metrics import Metrics
from gpt_jax.serve.http.served import ServedModel, ServedModels
from gpt_jax.serve.http.work import perform
from gpt_jax.web import page_files

LOOPBACK = ('localhost', '127.0.0.1', '[::1]')
PATIENCE = 60.0  # seconds that a stream waits for a client to take a part
T = TypeVar('T', bound=bodies.Body)


class Api:
    """The routes, and the models that they serve once these are ready."""

    def __init__(self):
        self.models: ServedModels | None = None  # None: not ready
        self.metrics = Metrics()
        self._explaining = LatestNext()

    def ready(self, models: ServedModels) -> None:
        """Makes the models available; until then every request for them gets 503."""
        self.metrics.watch(models)
        self.models = models

    def routes(self) -> list[Route]:
        """Returns the routes."""
        posts = {
            '/v1/completions': self.completions,
            '/v1/chat/completions': self.chat,
            '/v1/embeddings': self.embeddings,
            '/tokenize': self.tokenize,
            '/detokenize': self.detokenize,
            '/inspect/attention': self.attention,
            '/inspect/token': self.explain_token,
        }
        gets = {
            '/v1/models': self.list_models,
            '/v1/models/{name:path}': self.one_model,
            '/healthz': self.health,
            '/readyz': self.readiness,
            '/metrics': self.show_metrics,
        }
        return [
            *(
                Route(path, _Measured(path, route, self.metrics), methods=['POST'])
                for path, route in posts.items()
            ),
            *(Route(path, route, methods=['GET']) for path, route in gets.items()),
            *(Route(path, _file(name, text)) for path, (name, text) in page().items()),
        ]

    def _models(self) -> ServedModels:
        if self.models is None:
            raise ApiError(
                503, 'the model is not ready yet', code='loading', headers={'Retry-After': '5'}
            )
        return self.models

    async def _read(self, request: Request, kind: type[T]) -> tuple[T, ServedModel]:
        body = kind.model_validate_json(await request.body())
        return body, self._models().named(body.model)

    async def completions(self, request: Request) -> Response:
        """Answers `/v1/completions`."""
        body, model = await self._read(request, bodies.CompletionBody)
        model.check(body)
        return await self._respond(request, body, Completions(body, model))

    async def chat(self, request: Request) -> Response:
        """Answers `/v1/chat/completions`."""
        body, model = await self._read(request, bodies.ChatBody)
        model.check(body)
        size = sum(len(message.content) + 20 for message in body.messages)  # 20: of the template
        found = await perform(Chat, body, model, size=size)
        return await self._respond(request, body, found)

    async def _respond(
        self, request: Request, body: bodies.SamplingBody, found: Completions | Chat
    ) -> Response:
        if not body.stream:
            return await answer(request, found.whole())
        values = found.events()
        await anext(values)
        return EventStream(values, patience=PATIENCE)

    async def embeddings(self, request: Request) -> Response:
        """Answers `/v1/embeddings`."""
        body, model = await self._read(request, bodies.EmbeddingBody)
        return await answer(request, embed(body, model))

    async def tokenize(self, request: Request) -> Response:
        """Answers `/tokenize`: the ids of a text or a conversation, and the text of each."""
        body, model = await self._read(request, bodies.TokenizeBody)
        return await asyncio.to_thread(_tokenized, body, model)  # long texts take a while

    async def detokenize(self, request: Request) -> Response:
        """Answers `/detokenize`: the text of ids, and that of each."""
        body, model = await self._read(request, bodies.DetokenizeBody)
        return await asyncio.to_thread(_detokenized, body, model)

    async def attention(self, request: Request) -> Response:
        """Answers `/inspect/attention`: how much a token attends to itself and those before."""
        body, model = await self._read(request, bodies.PositionBody)
        if model.attention is None:
            raise ApiError(400, 'the attention of this model is not shown', code='not_inspected')
        await asyncio.to_thread(model.tokenizer.decode, body.tokens)  # refuses what is no token
        start, weights = await asyncio.to_thread(model.attention, body.tokens, body.position)
        layers, heads, _ = weights.shape
        values = weights.astype(float).ravel().tolist()
        found = {'start': start, 'layers': layers, 'heads': heads, 'weights': values}
        return JSONResponse(found)

    async def explain_token(self, request: Request) -> Response:
        """Answers `/inspect/token`: what analyses say about the prediction of a token."""
        body, model = await self._read(request, bodies.ExplanationBody)
        if model.explanation is None:
            raise ApiError(400, 'tokens of this model are not explained', code='not_inspected')
        await asyncio.to_thread(model.tokenizer.decode, body.tokens)  # refuses what is no token

        def work() -> Response:
            return JSONResponse(model.explanation(body.tokens, body.position, body.analyses))

        return await answer(request, self._explaining.run(work))

    async def list_models(self, request: Request) -> Response:
        """Answers `/v1/models`."""
        data = [model.describe() for model in self._models()]
        return JSONResponse({'object': 'list', 'data': data})

    async def one_model(self, request: Request) -> Response:
        """Answers `/v1/models/NAME`."""
        return JSONResponse(self._models().named(request.path_params['name']).describe())

    async def health(self, request: Request) -> Response:
        """Says that the process lives: 503 if the worker of an engine failed."""
        failures = [model.engine.failure for model in self.models or ()]
        failure = next(filter(None, failures), None)
        return PlainTextResponse(f'{failure}\n' if failure else 'ok\n', 503 if failure else 200)

    async def readiness(self, request: Request) -> Response:
        """Says whether requests are taken."""
        self._models()
        return await self.health(request)

    async def show_metrics(self, request: Request) -> Response:
        """Answers `/metrics`."""
        content, kind = self.metrics.render()
        return Response(content, media_type=kind)


def page() -> dict[str, tuple[str, str]]:
    """Returns the names and texts of the page's files, by path."""
    found = page_files(pathlib.Path(__file__).parents[1] / 'page')
    paths = {'/' if name == 'index.html' else f'/{name}': name for name in found}
    return {path: (name, found[name]) for path, name in paths.items()}


def _file(name: str, text: str) -> Callable[[Request], Awaitable[Response]]:
    """Returns a route that answers with a file of the page."""
    headers = {'Cache-Control': 'no-cache', 'X-Content-Type-Options': 'nosniff'}
    kind = mimetypes.guess_type(name)[0]

    async def route(request: Request) -> Response:
        return Response(text, headers=headers, media_type=kind)

    return route


def _tokenized(body: bodies.TokenizeBody, model: ServedModel) -> Response:
    ids = _encode(body, model)
    return JSONResponse(
        {
            'count': len(ids),
            'max_model_len': model.context,
            'tokens': ids,
            'token_strs': model.token_texts(ids),
        }
    )


def _detokenized(body: bodies.DetokenizeBody, model: ServedModel) -> Response:
    return JSONResponse(
        {
            'prompt': model.tokenizer.decode(body.tokens),
            'token_strs': model.token_texts(body.tokens),
        }
    )


def _encode(body: bodies.TokenizeBody, model: ServedModel) -> list[int]:
    if body.messages is not None:
        return model.encode_chat(body.messages)
    if body.add_special_tokens:
        return encode_prompt(model.tokenizer, body.prompt)
    return model.tokenizer.encode(body.prompt)


class _Measured:
    """An ASGI application that answers by a route, and counts and times what it does."""

    def __init__(
        self, path: str, route: Callable[[Request], Awaitable[Response]], metrics: Metrics
    ):
        self._path, self._route, self._metrics = path, route, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request; errors become responses."""
        path, metrics = self._path, self._metrics
        began, status, first = time.monotonic(), 500, None

        async def watched(message: dict) -> None:
            nonlocal status, first
            if message['type'] == 'http.response.start':
                status = message['status']
            elif first is None and message.get('body'):
                first = time.monotonic() - began
                metrics.first.labels(path).observe(first)
            await send(message)

        try:
            try:
                response = await self._route(Request(scope, receive))
            except Exception as error:
                response = explain(error).response()
            await response(scope, receive, watched)
        finally:
            metrics.responses.labels(path, str(status)).inc()
            metrics.seconds.labels(path).observe(time.monotonic() - began)


def make_app(api: Api, config: ServeConfig, *, keys: list[str], origins: list[str]) -> Starlette:
    """Returns the ASGI application.

    Args:
      keys: of which a request must have one; none: only requests to this machine are taken.
      origins: sites whose pages may call the server; none: no header allows any.
    """

    async def refuse(request: Request, error: Exception) -> Response:
        status = getattr(error, 'status_code', 404)
        what = {404: 'there is nothing at', 405: f'{request.method} is not a method of'}
        path = request.url.path[:200]
        headers = getattr(error, 'headers', None)
        message = f'{what.get(status, "this does not work at")} {path}'
        return ApiError(status, message, headers=headers).response()

    async def explained(request: Request, error: Exception) -> Response:
        return explain(error).response()

    async def failed(request: Request, error: Exception) -> Response:
        return ApiError(500, 'the server failed; its log has the reason').response()

    guard = Middleware(
        Guard,
        keys=keys,
        hosts=LOOPBACK,
        max_body=config.max_body_bytes,
        open_paths=['/healthz', '/readyz', *page()],
    )
    middleware = [guard]
    if origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=['GET', 'POST'],
            allow_headers=['*'],  # clients send some of their own
            expose_headers=['Retry-After'],
        )
        middleware.insert(0, cors)
    return Starlette(
        routes=api.routes(),
        middleware=middleware,
        exception_handlers={404: refuse, 405: refuse, ApiError: explained, Exception: failed},
    )
