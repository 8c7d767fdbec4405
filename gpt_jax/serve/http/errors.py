"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pydantic
from starlette.responses import Response

from gpt_jax.errors import UserError
from gpt_jax.serve.request import (
    GrammarError,
    QueueFullError,
    RequestTimeoutError,
    ServeError,
)

TYPES = {
    400: 'invalid_request_error',
    401: 'authentication_error',
    404: 'not_found_error',
    429: 'rate_limit_error',
}


class ApiError(Exception):
    """An error that its client gets as status and one line."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as its client sees it."""
        otherwise = 'invalid_request_error' if self.status < 500 else 'server_error'
        return {
            'error': {
                'message': ' '.join(str(self).split()),
                'type': TYPES.get(self.status, otherwise),
                'param': self.param,
                'code': self.code,
            }
        }

    def response(self) -> Response:
        """Returns the error as a response."""
        content = json.dumps(self.body).encode()
        return Response(content, self.status, self.headers, media_type='application/json')


def explain(error: Exception) -> ApiError:
    """Returns the API's error for one of ours; others are re-raised."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, pydantic.ValidationError):
        return _of_body(error)
    if isinstance(error, QueueFullError):
        wait = str(error.retry_seconds)
        return ApiError(429, str(error), code='queue_full', headers={'Retry-After': wait})
    if isinstance(error, RequestTimeoutError):
        return ApiError(503, str(error), code='timeout')
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), param='response_format')
    if isinstance(error, ServeError):
        return ApiError(503, str(error), code='engine_stopped')
    if isinstance(error, UserError):
        return _of_setting(str(error))
    raise error


def _of_body(error: pydantic.ValidationError) -> ApiError:
    """Returns the first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = first['msg'][:1].lower() + first['msg'][1:]
    # 'str', and parts with brackets, name a type among several, not a field.
    parts = [str(part) for part in first['loc'] if part != 'str']
    if first['type'] == 'value_error':  # one of ours, which may begin with a field
        message = str(first['ctx']['error'])
        field, colon, rest = message.partition(': ')
        if colon and field.isidentifier():
            parts, message = [*parts, field], rest
    param = '.'.join(part for part in parts if re.fullmatch(r'\w+', part))
    if first['type'] == 'json_invalid':
        return ApiError(400, f'the body is not JSON: {first["ctx"]["error"]}')
    return ApiError(400, f'{param}: {message}' if param else message, param=param or None)


def _of_setting(message: str) -> ApiError:
    """Returns the error for a value that the engine refuses, under the API's name of it."""
    message = message.replace('config.sample.max_new_tokens', 'max_tokens')
    message = message.replace('config.sample.', '')
    param = re.match(r'(\w+)=|the (prompt) ', message)
    if 'config.model.max_seq_len' in message:
        return ApiError(400, message, param='prompt', code='context_length_exceeded')
    return ApiError(400, message, param=param and (param[1] or param[2]))
