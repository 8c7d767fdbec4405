"""OpenAI's API over HTTP: its texts are generate's, also for the official client."""

import asyncio
import base64
import concurrent.futures
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from gpt_jax.inference.config import SampleConfig
from gpt_jax.tokenizer import chat_template
from tests.serve.tiny import alone, fit, serving, until

pytest.importorskip('uvicorn', reason='needs the extra serve')

GREEDY = SampleConfig(temperature=0.0, max_new_tokens=20)


@pytest.fixture(scope='module')
def client():
    with serving() as client:
        yield client


def official_client(client):
    openai = pytest.importorskip('openai', reason='needs requirements-dev.txt')
    return openai.OpenAI(base_url=f'http://127.0.0.1:{client.port}/v1', api_key='none')


def complete(client, **body):
    return client.ask('/v1/completions', **({'temperature': 0, 'max_tokens': 20} | body))


def test_a_completion_is_what_generate_writes(client):
    gpt = fit()
    [expected] = alone(gpt, 'Alice', GREEDY)
    found = complete(client, prompt='Alice')
    assert found['choices'] == [
        {'index': 0, 'text': expected.text, 'logprobs': None, 'finish_reason': 'length'}
    ]
    ids = gpt.tokenizer.encode('Alice')
    assert found['usage']['prompt_tokens'] == len(ids)
    assert found['usage']['completion_tokens'] == 20
    assert (found['object'], found['model']) == ('text_completion', 'tiny')
    assert complete(client, prompt=ids)['choices'] == found['choices']
    two = complete(client, prompt=[ids, ids[:2]])['choices']
    assert two[0]['text'] == expected.text
    assert two[1]['text'] == alone(gpt, ids[:2], GREEDY)[0].text


def test_samples_depend_on_the_seed(client):
    gpt = fit()
    sampling = SampleConfig(
        temperature=0.9, top_p=0.9, top_k=40, max_new_tokens=20, seed=7, num_samples=3,
        min_p=0.01, repetition_penalty=1.1, presence_penalty=0.3, frequency_penalty=0.2,
    )  # fmt: skip
    expected = [each.text for each in alone(gpt, 'Alice', sampling)]
    body = dict(
        prompt='Alice', temperature=0.9, top_p=0.9, top_k=40, seed=7, n=3, min_p=0.01,
        repetition_penalty=1.1, presence_penalty=0.3, frequency_penalty=0.2,
    )  # fmt: skip
    found = complete(client, **body)
    assert [choice['text'] for choice in found['choices']] == expected
    assert len(set(expected)) == 3
    other = complete(client, **body | {'seed': 8})
    assert [choice['text'] for choice in other['choices']] != expected
    free = [complete(client, prompt='Alice', temperature=1.5)['choices'][0] for _ in range(2)]
    assert free[0] != free[1], 'without a seed, every request has its own'


def test_a_stream_has_the_text_of_the_whole(client):
    body = dict(prompt=['Alice', 'The'], temperature=0.8, seed=3, max_tokens=60, logprobs=2)
    whole = client.ask('/v1/completions', **body)
    events = [*client.events('/v1/completions', **body, stream_options={'include_usage': True})]
    assert events[-1]['choices'] == []
    assert events[-1]['usage']['completion_tokens'] == whole['usage']['completion_tokens'] == 120
    for choice in whole['choices']:
        parts = [each['choices'][0] for each in events[:-1]]
        parts = [part for part in parts if part['index'] == choice['index']]
        assert len(parts) > 2
        assert ''.join(part['text'] for part in parts) == choice['text']
        assert [part['finish_reason'] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]['finish_reason'] == 'length'
        for name, values in choice['logprobs'].items():
            assert sum((part['logprobs'][name] for part in parts), []) == values


@pytest.mark.parametrize('stream', [False, True])
def test_an_echo_has_the_scores_of_the_prompt(client, stream):
    gpt = fit()
    ids = gpt.tokenizer.encode('Alice was not')
    body = dict(prompt=ids, max_tokens=4, temperature=0, logprobs=3, echo=True)
    if stream:
        parts = [event['choices'][0] for event in client.events('/v1/completions', **body)]
        text = ''.join(part['text'] for part in parts)
        found = {
            name: sum((part['logprobs'][name] for part in parts), [])
            for name in parts[0]['logprobs']
        }
    else:
        [choice] = client.ask('/v1/completions', **body)['choices']
        text, found = choice['text'], choice['logprobs']
    [expected] = alone(gpt, ids, SampleConfig(temperature=0.0, max_new_tokens=4))
    assert text == 'Alice was not' + expected.text
    assert ''.join(found['tokens']) == text
    assert found['token_logprobs'][0] is None and found['top_logprobs'][0] is None
    assert all(value < 0 for value in found['token_logprobs'][1:])
    assert found['text_offset'] == [len(''.join(found['tokens'][:i])) for i in range(len(ids) + 4)]
    for token, value, best in zip(
        found['tokens'][-4:], found['token_logprobs'][-4:], found['top_logprobs'][-4:], strict=True
    ):
        assert max(best, key=best.get) == token and best[token] == pytest.approx(value, abs=1e-5)
    only = client.ask('/v1/completions', **body | {'max_tokens': 0})['choices'][0]
    assert only['text'] == 'Alice was not'
    np.testing.assert_allclose(
        only['logprobs']['token_logprobs'][1:], found['token_logprobs'][1 : len(ids)], atol=1e-4
    )


def test_stop_strings_and_biases(client):
    [free] = alone(fit(), 'Alice', GREEDY)
    stop = free.text[7:9]
    [choice] = complete(client, prompt='Alice', stop=[stop, 'zzz'])['choices']
    assert choice['text'] == free.text[: free.text.index(stop)]
    assert choice['finish_reason'] == 'stop'
    first = free.tokens[0]
    [choice] = complete(client, prompt='Alice', logit_bias={str(first): 100})['choices']
    assert choice['text'] == fit().tokenizer.decode([first] * 20)


def test_a_chat_is_answered_by_the_template(client):
    gpt = fit()
    messages = [{'role': 'user', 'content': 'Who?'}]
    ids = chat_template.encode_prompt(messages, gpt.tokenizer)
    [expected] = alone(gpt, ids, GREEDY)
    body = dict(messages=messages, temperature=0, max_completion_tokens=20)
    found = client.ask('/v1/chat/completions', **body, logprobs=True, top_logprobs=2)
    [choice] = found['choices']
    assert choice['message'] == {'role': 'assistant', 'content': expected.text, 'refusal': None}
    entries = choice['logprobs']['content']
    assert bytes(sum((entry['bytes'] for entry in entries), [])).decode() == expected.text
    for entry in entries:
        assert entry['top_logprobs'][0]['token'] == entry['token']
        assert len(entry['top_logprobs']) == 2
    parts = [event['choices'][0] for event in client.events('/v1/chat/completions', **body)]
    assert parts[0]['delta'] == {'role': 'assistant', 'content': ''}
    assert ''.join(part['delta'].get('content', '') for part in parts) == expected.text
    assert parts[-1]['finish_reason'] == 'length'
    # Parts of a content, the newer name of a role, and no limit: until the context ends.
    body = dict(
        messages=[{'role': 'developer', 'content': [{'type': 'text', 'text': 'Be.'}]}, *messages],
        temperature=0,
    )
    found = client.ask('/v1/chat/completions', **body)
    usage = found['usage']
    assert usage['total_tokens'] == 150 or found['choices'][0]['finish_reason'] == 'stop'


def test_text_of_users_never_becomes_a_special_token(client):
    tokenizer = fit().tokenizer
    name, eot = '<|endoftext|>', tokenizer.eot_id
    assert tokenizer.special_tokens[name] == eot
    for prompt in (name, f'a{name}b', '<|endof<|endoftext|>text|>', '<\ue004|endoftext|>'):
        ids = client.ask('/tokenize', prompt=prompt)['tokens']
        assert eot not in ids and tokenizer.decode(ids) == prompt
        plain = client.ask('/tokenize', messages=[{'role': 'user', 'content': 'x'}])['tokens']
        chat = client.ask('/tokenize', messages=[{'role': 'user', 'content': prompt}])['tokens']
        assert chat.count(eot) == plain.count(eot)
        assert prompt.replace('\ue004', '') in tokenizer.decode(chat)
    forged = chat_template.encode_prompt([{'role': 'user', 'content': name}], tokenizer)
    assert eot in forged, 'the default template would take it'
    assert complete(client, prompt=[eot, 5])['usage']['prompt_tokens'] == 2, 'ids may hold them'


def test_tokenize_names_the_tokens(client):
    found = client.ask('/tokenize', prompt='Alice é')
    assert ''.join(found['token_strs'][:1]) and found['count'] == len(found['tokens'])
    assert found['max_model_len'] == 150
    assert found['token_strs'][-2:] == ['bytes:\\xc3', 'bytes:\\xa9']


def test_embeddings_are_of_length_one(client):
    found = client.ask('/v1/embeddings', input=['Alice was', 'Alice is', '7%'])
    vectors = np.array([each['embedding'] for each in found['data']])
    assert vectors.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    coded = client.ask('/v1/embeddings', input='Alice was', encoding_format='base64')
    data = base64.b64decode(coded['data'][0]['embedding'])
    np.testing.assert_allclose(np.frombuffer(data, '<f4'), vectors[0], rtol=1e-5)


def test_the_official_client_runs_unmodified(client):
    openai = pytest.importorskip('openai', reason='needs requirements-dev.txt')
    official = official_client(client)
    [expected] = alone(fit(), 'Alice', GREEDY)
    assert [model.id for model in official.models.list()] == ['tiny']
    assert official.models.retrieve('tiny').owned_by == 'gpt_jax'
    found = official.completions.create(
        model='tiny', prompt='Alice', max_tokens=20, temperature=0, logprobs=2, user='me'
    )
    assert found.choices[0].text == expected.text
    assert math.isclose(
        max(found.choices[0].logprobs.top_logprobs[0].values()),
        found.choices[0].logprobs.token_logprobs[0],
        abs_tol=1e-5,
    )
    stream = official.chat.completions.create(
        model='tiny',
        messages=[{'role': 'user', 'content': 'Who?'}],
        stream=True,
        max_tokens=9,
        logit_bias={fit().tokenizer.eot_id: -100},  # without a seed it might end before
    )
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == 'length'
    assert len(official.embeddings.create(model='tiny', input='a').data[0].embedding) == 32
    with pytest.raises(openai.NotFoundError, match='no model'):
        official.completions.create(model='other', prompt='Alice')
    with pytest.raises(openai.BadRequestError, match='tools'):
        official.chat.completions.create(
            model='tiny', messages=[{'role': 'user', 'content': 'a'}], tools=[]
        )


def test_null_is_not_given(client):
    expected = complete(client, prompt='Alice')['choices']
    assert complete(client, prompt='Alice', tools=None, suffix=None, n=None)['choices'] == expected
    official = official_client(client)
    messages = [{'role': 'user', 'content': 'Who?'}]
    for _ in range(2):  # the answer has fields that are null, such as `refusal`
        answer = official.chat.completions.create(model='tiny', messages=messages, max_tokens=5)
        messages += [answer.choices[0].message, {'role': 'user', 'content': 'And?'}]


def test_a_client_that_hangs_up_frees_its_row(client):
    forever = {'prompt': 'Alice', 'max_tokens': 500_000, 'temperature': 0}
    for stream in (True, False):
        connections = [client.connect() for _ in range(3)]
        for connection in connections:
            body = json.dumps(forever | {'stream': stream})
            connection.request('POST', '/v1/completions', body, client.headers)
        until(lambda: client.metric('running') == 3)
        if stream:
            connections[0].getresponse().read(10)
        for connection in connections:
            connection.sock.close() if connection.sock else connection.close()
            connection.close()
        until(lambda: client.metric('running') == 0)
    assert complete(client, prompt='Alice')['choices']


def test_texts_that_are_submitted_after_their_client_left_are_cancelled():
    from gpt_jax.serve.http.texts import submitted

    class Slow:
        """An engine that takes a while to queue."""

        config = SimpleNamespace(max_response_tokens=5)

        def prepare(self, *_, **__):
            request = SimpleNamespace(most_scores=1, cancel=lambda: gone.add(id(request)))
            return request

        def enqueue(self, requests):
            time.sleep(0.2)
            queued.update(map(id, requests))

    async def ask():
        async with submitted(SimpleNamespace(engine=engine), ['a'] * 5, None):
            pass

    async def leave():
        task = asyncio.ensure_future(ask())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])

    engine, queued, gone = Slow(), set(), set()
    asyncio.run(leave())  # waits for the thread
    assert len(queued) == 5 and gone == queued


def test_the_texts_of_a_request_wait_together():
    with serving(rows=1, queue=2) as client:
        found = complete(client, prompt=['Alice', 'Bob'], n=4, max_tokens=2)
        assert len(found['choices']) == 8
        assert len(client.ask('/v1/embeddings', input=['a'] * 6)['data']) == 6


def test_a_response_has_a_limited_size():
    with serving(max_response_tokens=100) as client:
        complete(client, prompt='a', n=5, max_tokens=20)
        for body in (
            {'n': 5, 'max_tokens': 21},
            {'prompt': ['a'] * 2, 'n': 3, 'max_tokens': 20},
            {'logprobs': 4, 'max_tokens': 21},
            {'logprobs': 3, 'max_tokens': 0, 'echo': True, 'prompt': 'a' * 26},
        ):
            status, _, content = client.request('/v1/completions', {'prompt': 'a'} | body)
            error = json.loads(content)['error']
            assert status == 400 and error['param'] == 'max_tokens', content
            assert 'config.serve.max_response_tokens' in error['message']
        assert client.metric('running') == client.metric('waiting') == 0


def test_a_stream_whose_client_does_not_read_fails(client):
    connection = client.connect()
    body = {'prompt': 'Alice', 'temperature': 0, 'max_tokens': 24_000, 'logprobs': 20}
    body |= {'return_token_ids': True, 'stream': True}
    connection.request('POST', '/v1/completions', json.dumps(body), client.headers)
    until(lambda: client.metric('running') == 1)
    until(lambda: client.metric('running') == 0, seconds=60)
    with connection.getresponse() as response:
        *events, error, done = response.read().decode().strip().split('\n\n')
    assert 'reads too slowly' in error and '"code": "timeout"' in error and done == 'data: [DONE]'
    # What the client had not taken still comes.
    assert sum(event.count('"seconds"') for event in events) > 4096
    connection.close()


def test_a_full_queue_gets_429():
    forever = {'prompt': 'Alice', 'max_tokens': 500_000, 'temperature': 0}
    with serving(rows=1, queue=1, queue_seconds=4.0) as client:
        connections = [client.connect() for _ in range(2)]
        for number, connection in enumerate(connections):
            body = json.dumps(forever | {'stream': number == 1})
            connection.request('POST', '/v1/completions', body, client.headers)
            until(lambda: client.metric('running') + client.metric('waiting') == number + 1)  # noqa: B023
        status, headers, content = client.request('/v1/completions', {'prompt': 'a'})
        assert status == 429 and int(headers['retry-after']) >= 1
        assert json.loads(content)['error']['code'] == 'queue_full'
        # The one that waits gives up, with an event that says so.
        content = connections[1].getresponse().read().decode()
        assert '"code": "timeout"' in content and content.endswith('data: [DONE]\n\n')
        for connection in connections:
            connection.close()


def test_keys_are_required_where_there_are_some():
    key = 'k' * 20
    with serving(keys=[key, 'x' * 16]) as client:
        assert client.request('/v1/models')[0] == 200
        for given in ('', 'Bearer', f'Bearer {key}1', f'Basic {key}', 'Bearer \xe9'):
            headers = {'Authorization': given} if given else {}
            status, found, content = client.request('/v1/models', headers=headers)
            assert status == 401 and found['www-authenticate'] == 'Bearer'
            assert json.loads(content)['error']['code'] == 'invalid_api_key'
        assert client.request('/healthz', headers={})[0] == 200
        assert client.request('/metrics', headers={})[0] == 401


def test_pages_of_other_sites_cannot_call():
    origin = {'Origin': 'http://friend.example', 'Access-Control-Request-Method': 'POST'}
    with serving() as client:
        plain = {'Content-Type': 'text/plain'}
        assert client.request('/v1/completions', b'{}', headers=plain)[0] == 415
        rebound = client.headers | {'Host': 'evil.example:80'}
        assert client.request('/v1/completions', b'{}', headers=rebound)[0] == 421
        status, headers, _ = client.request('/v1/models', method='OPTIONS', headers=origin)
        assert status == 405 and 'access-control-allow-origin' not in headers
    with serving(origins=['http://friend.example']) as client:
        asked = origin | {'Access-Control-Request-Headers': 'authorization, x-stainless-lang'}
        status, headers, _ = client.request('/v1/models', method='OPTIONS', headers=asked)
        assert status == 200
        assert headers['access-control-allow-origin'] == 'http://friend.example'
        assert 'x-stainless-lang' in headers['access-control-allow-headers']
        _, headers, _ = client.request('/v1/models', headers=client.headers | origin)
        assert headers['access-control-expose-headers'] == 'Retry-After'


def test_several_models_have_names():
    with serving(names=['one', 'two']) as client:
        data = json.loads(client.request('/v1/models')[2])
        assert [model['id'] for model in data['data']] == ['one', 'two']
        assert complete(client, prompt='a', model='two')['model'] == 'two'
        assert complete(client, prompt='a')['model'] == 'one'


def test_texts_that_do_not_end_with_the_server_fail():
    endless = {'prompt': 'Alice', 'max_tokens': 500_000, 'temperature': 0}
    with (
        concurrent.futures.ThreadPoolExecutor() as threads,
        serving(rows=2, drain_seconds=0.5) as client,
    ):
        whole, stream = (
            threads.submit(client.request, '/v1/completions', endless | {'stream': stream})
            for stream in (False, True)
        )
        until(lambda: client.metric('running') == 2)
    status, _, content = whole.result()
    error = json.loads(content)['error']
    assert (status, error['code']) == (503, 'engine_stopped')
    assert 'config.serve.drain_seconds' in error['message']
    *_, last, done = stream.result()[2].decode().strip().split('\n\n')
    assert json.loads(last.removeprefix('data: '))['error'] == error and done == 'data: [DONE]'


def test_a_stopping_server_lets_texts_end():
    with serving(drain_seconds=30) as client:
        connection = client.connect()
        body = {'prompt': 'Alice', 'max_tokens': 1500, 'temperature': 0, 'stream': True}
        connection.request('POST', '/v1/completions', json.dumps(body), client.headers)
        response = connection.getresponse()
        response.read(1)
        began = time.monotonic()
    # Leaving the block stopped the server.
    content = response.read().decode()
    assert '"finish_reason": "length"' in content and 'data: [DONE]' in content
    assert time.monotonic() - began < 30
