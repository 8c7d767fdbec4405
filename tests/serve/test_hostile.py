"""Malformed, oversized and hostile requests get their status and one line; the server lives."""

import json
import socket
import time

import pytest

from tests.serve.tiny import serving, until

pytest.importorskip('uvicorn', reason='needs the extra serve')

COMPLETE, CHAT, EMBED = '/v1/completions', '/v1/chat/completions', '/v1/embeddings'
USER = {'role': 'user', 'content': 'a'}
LIMIT = 2**16
BAD = [
    # path, body (JSON or bytes), status, param or a part of the message
    (COMPLETE, b'', 400, 'not JSON'),
    (COMPLETE, b'{', 400, 'not JSON'),
    (COMPLETE, b'{"prompt": "a\xff"}', 400, 'not JSON'),
    (COMPLETE, b'{"prompt": "\\ud800"}', 400, 'not JSON'),
    (COMPLETE, b'[' * 50_000, 400, 'not JSON'),
    (COMPLETE, b'{"prompt": "a", "temperature": NaN}', 400, 'temperature'),
    (COMPLETE, b'{"prompt": "a", "temperature": 1e999}', 400, 'temperature'),
    (COMPLETE, [], 400, 'object'),
    (COMPLETE, {'prompt': 'a' * LIMIT}, 413, 'max_body_bytes'),
    (COMPLETE, {'prompt': 'a' * 5000}, 400, 'prompt'),
    (COMPLETE, {'prompt': {'a': 1}}, 400, 'prompt'),
    (COMPLETE, {'prompt': [[1, 2], 'a']}, 400, 'prompt'),
    (COMPLETE, {'prompt': [1.5]}, 400, 'prompt'),
    (COMPLETE, {'prompt': [-1]}, 400, 'prompt'),
    (COMPLETE, {'prompt': [300]}, 400, 'vocabulary'),
    (COMPLETE, {'prompt': [2**70]}, 400, 'prompt'),
    (COMPLETE, {'prompt': []}, 400, 'prompt'),
    (COMPLETE, {'prompt': ['a'] * 129}, 400, 'prompts'),
    (COMPLETE, {'prompt': ['a'] * 20, 'n': 20}, 400, 'prompts'),
    (COMPLETE, {'prompt': 'a', 'n': 0}, 400, 'n'),
    (COMPLETE, {'prompt': 'a', 'n': 10**9}, 400, 'n'),
    (COMPLETE, {'prompt': 'a', 'n': True}, 400, 'n'),
    (COMPLETE, {'prompt': 'a', 'max_tokens': -1}, 400, 'max_tokens'),
    (COMPLETE, {'prompt': 'a', 'max_tokens': 0}, 400, 'max_tokens'),
    (COMPLETE, {'prompt': 'a', 'max_tokens': '7'}, 400, 'max_tokens'),
    (COMPLETE, {'prompt': 'a', 'max_tokens': 2**40}, 400, 'max_tokens'),
    (COMPLETE, {'prompt': 'a', 'temperature': -0.1}, 400, 'temperature'),
    (COMPLETE, {'prompt': 'a', 'top_p': 0}, 400, 'top_p'),
    (COMPLETE, {'prompt': 'a', 'top_k': -1}, 400, 'top_k'),
    (COMPLETE, {'prompt': 'a', 'min_p': 1}, 400, 'min_p'),
    (COMPLETE, {'prompt': 'a', 'presence_penalty': 3}, 400, 'presence_penalty'),
    (COMPLETE, {'prompt': 'a', 'logprobs': 21}, 400, 'config.serve.best'),
    (COMPLETE, {'prompt': 'a', 'best_of': 5}, 400, 'best_of'),
    (COMPLETE, {'prompt': 'a', 'suffix': 'b'}, 400, 'suffix'),
    (COMPLETE, {'prompt': 'a', 'stop': ''}, 400, 'stop'),
    (COMPLETE, {'prompt': 'a', 'stop': ['b'] * 17}, 400, 'stop'),
    (COMPLETE, {'prompt': 'a', 'logit_bias': {'x': 1}}, 400, 'logit_bias'),
    (COMPLETE, {'prompt': 'a', 'logit_bias': {'999': 1}}, 400, 'vocabulary'),
    (COMPLETE, {'prompt': 'a', 'logit_bias': {'5': 101}}, 400, 'logit_bias'),
    (COMPLETE, {'prompt': 'a', 'seed': 2**64}, 400, 'seed'),
    (COMPLETE, {'prompt': 'a', 'model': '../../etc/passwd'}, 404, 'model'),
    (COMPLETE, {'prompt': 'a', '__class__': 1}, 400, '__class__'),
    (COMPLETE, {'prompt': 'a', 'stream_options': {'x': 1}}, 400, 'stream_options.x'),
    (CHAT, {}, 400, 'messages'),
    (CHAT, {'messages': []}, 400, 'messages'),
    (CHAT, {'messages': [{'role': 'root', 'content': 'a'}]}, 400, 'messages.0.role'),
    (CHAT, {'messages': [{'role': 'user'}]}, 400, 'messages.0.content'),
    (CHAT, {'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]}, 400, 'content'),
    (CHAT, {'messages': [{'role': 'user', 'content': '\ue000'}]}, 400, 'character'),
    (CHAT, {'messages': [USER] * 200}, 400, 'prompt'),
    (CHAT, {'messages': [USER], 'tools': []}, 400, 'tools'),
    (CHAT, {'messages': [USER], 'top_logprobs': 2}, 400, 'top_logprobs'),
    (CHAT, {'messages': [USER], 'response_format': {'type': 'xml'}}, 400, 'response_format.type'),
    (CHAT, {'messages': [USER], 'response_format': {'type': 'json_schema'}}, 400, 'json_schema'),
    (COMPLETE, {'response_format': {'json_schema': {'name': 'a', 'schema': {}}}}, 400, 'type'),
    (
        COMPLETE,
        {'response_format': {'type': 'json_schema', 'json_schema': {'name': 'a'}}},
        400,
        'response_format.json_schema.schema',
    ),
    (EMBED, {'input': []}, 400, 'input'),
    (EMBED, {'input': 'a', 'dimensions': 3}, 400, 'dimensions'),
    ('/tokenize', {}, 400, 'prompt'),
    ('/v1/nothing', {}, 404, '/v1/nothing'),
    ('/../../etc/passwd', None, 404, 'nothing at'),
    ('/v1/models/other', None, 404, 'model'),
    (COMPLETE, None, 405, 'GET'),
    ('/healthz', {}, 405, 'POST'),
]


@pytest.fixture(scope='module')
def client():
    with serving(max_body_bytes=LIMIT) as client:
        yield client


STREAMED = [
    (path, body | {'stream': True}, status, part)
    for path, body, status, part in BAD
    if path in (COMPLETE, CHAT) and isinstance(body, dict)
]


@pytest.mark.parametrize(
    'case', BAD + STREAMED, ids=lambda case: f'{case[0]} {str(case[1])[:20]} {case[3]}'
)
def test_a_bad_request_gets_its_status_and_one_line(client, case):
    path, body, status, part = case
    found, headers, content = client.request(path, body)
    assert found == status, content
    assert headers['content-type'] == 'application/json'
    error = json.loads(content)['error']
    assert part == error['param'] or part in error['message'], error
    assert '\n' not in error['message'] and 0 < len(error['message']) < 300
    assert error['type'] != 'server_error'
    assert not (error['param'] or '').endswith('.str')


ITEM = 'input should be a valid'


@pytest.mark.parametrize(
    ('path', 'body', 'param', 'message'),
    [
        (COMPLETE, {'prompt': [-1]}, 'prompt.0', 'input should be greater than or equal to 0'),
        (COMPLETE, {'prompt': [5, 'a']}, 'prompt.1', f'{ITEM} integer'),
        (COMPLETE, {'prompt': [[5], 'a']}, 'prompt.1', f'{ITEM} array'),
        (COMPLETE, {'prompt': ['a', 5]}, 'prompt.1', f'{ITEM} string'),
        (COMPLETE, {'prompt': [[5], []]}, 'prompt.1', 'list should have at least 1 item'),
        (COMPLETE, {'prompt': 5}, 'prompt', 'give a text or its ids, or a list of texts'),
        (COMPLETE, {'prompt': []}, 'prompt', 'give at least one'),
        (COMPLETE, {'stop': ['']}, 'stop.0', 'string should have at least 1 character'),
        (COMPLETE, {'stop': [5]}, 'stop', 'give a text, or a list of texts'),
        (COMPLETE, {'prompt': 'a', 'logprobs': 21}, 'logprobs', 'at most 20 (config.serve.best)'),
        (COMPLETE, {'logit_bias': {'x': 1}}, 'logit_bias', "'x' is not a token id"),
        (COMPLETE, {'logit_bias': {'999': 1}}, 'logit_bias', 'token id 999 is not in the voc'),
        (COMPLETE, {'prompt': 'a', 'best_of': 5}, 'best_of', 'must equal n'),
        (CHAT, {'messages': [USER], 'top_logprobs': 2}, 'top_logprobs', 'needs logprobs: true'),
        (
            CHAT,
            {'messages': [USER], 'logprobs': True, 'top_logprobs': 21},
            'top_logprobs',
            'at most 20 (config.serve.best)',
        ),
        (EMBED, {'input': [['a']]}, 'input.0.0', f'{ITEM} integer'),
        ('/tokenize', {}, 'prompt', 'give either this or messages'),
    ],
)
def test_an_error_names_the_field_that_is_wrong(client, path, body, param, message):
    status, _, content = client.request(path, body)
    error = json.loads(content)['error']
    assert (status, error['param'], error['code']) == (400, param, None)
    assert message in error['message'] and error['message'].count(param) == 1


def send(client, data: bytes, *, seconds=20) -> bytes:
    """Returns the answer to raw bytes."""
    with socket.create_connection(('127.0.0.1', client.port), timeout=seconds) as connection:
        connection.sendall(data)
        found = b''
        while part := connection.recv(65536):
            found += part
        return found


CLOSE = b'\r\nConnection: close\r\n\r\n'
HEAD = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'


@pytest.mark.parametrize(
    ('data', 'status'),
    [
        (b'nonsense\r\n\r\n', b'400'),
        (b'\x16\x03\x01\x02\x00\x01\x00', None),  # TLS; waits for more
        (b'GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ' + b'a' * 40_000 + CLOSE, b'431'),
        (HEAD + b'Content-Length: -5\r\n\r\n', b'400'),
        (HEAD + b'Content-Length: 99999999999999999999999\r\n\r\n', b'4'),
        (HEAD + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n', b'400'),
        (HEAD + b'Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}', b'400'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_http_is_refused(client, data, status):
    if status is None:
        with socket.create_connection(('127.0.0.1', client.port)) as connection:
            connection.sendall(data)
    else:
        assert send(client, data).split(b' ', 1)[1].startswith(status)
    assert client.request('/healthz')[0] == 200


def test_a_body_in_chunks_is_limited(client):
    chunk = b'8000\r\n' + b'a' * 0x8000 + b'\r\n'
    found = send(
        client, HEAD + b'Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n' + 3 * chunk
    )
    assert b' 413 ' in found


def test_bodies_that_do_not_come_hold_nothing_up(client):
    waiting = []
    for _ in range(50):
        connection = socket.create_connection(('127.0.0.1', client.port))
        connection.sendall(HEAD + b'Content-Length: 100\r\n\r\n{')
        waiting.append(connection)
    began = time.monotonic()
    client.ask(COMPLETE, prompt='a', max_tokens=3)
    assert time.monotonic() - began < 10
    for connection in waiting:
        connection.close()


def test_a_fault_of_the_server_is_no_leak(monkeypatch):
    from gpt_jax.serve.engine import Engine

    def fail(*_, **__):
        raise RuntimeError('a secret')

    with serving() as client:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, 'prepare', fail)
            status, _, content = client.request(COMPLETE, {'prompt': 'a'})
        assert status == 500 and b'secret' not in content
        assert json.loads(content)['error']['type'] == 'server_error'
        assert client.ask(COMPLETE, prompt='a', max_tokens=2)['choices']


def test_after_all_that_the_server_answers(client):
    """The last test of this file: nothing is left behind."""
    until(lambda: client.metric('running') == 0)
    assert client.metric('waiting') == 0
    assert client.request('/healthz')[2] == b'ok\n'
    assert client.ask(COMPLETE, prompt='Alice', max_tokens=5)['usage']['completion_tokens'] > 0
