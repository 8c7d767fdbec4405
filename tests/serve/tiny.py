"""A tiny model after some steps on the committed text, and a server of it in this process."""

import contextlib
import functools
import json
import threading
import time
from http.client import HTTPConnection

from gpt_jax import GPT
from gpt_jax.inference.generate import Generator
from gpt_jax.inspector.token_attention import TokenAttention
from gpt_jax.inspector.token_explanation import TokenExplanation
from gpt_jax.model.attention import Latent
from gpt_jax.serve.config import ServeConfig
from gpt_jax.serve.engine import Engine
from tests.tiny_config import TEXT

SMALL = dict(vocab_size=300, num_layers=2, num_heads=2, d_model=32, d_ff=64, max_seq_len=150)
ARCHITECTURES = {
    'learned': {},
    'rope, window': dict(position='rope', num_kv_heads=1, window_pattern=(9, 0)),
    'alibi': dict(position='alibi'),
    'latent': dict(position='rope', attention=Latent(kv_rank=8, rope_dim=4)),
}


@functools.cache
def fit(name='learned') -> GPT:
    """The model."""
    gpt = GPT(**SMALL, **ARCHITECTURES[name])
    gpt.fit(TEXT, steps=60, batch_size=4, learning_rate=3e-3, quiet=True)
    return gpt


def alone(gpt, prompt, sampling, **options):
    """The texts that `--mode generate` writes."""
    model = Generator(gpt.config.model, gpt.params, gpt.tokenizer, **options)
    return model.generate([prompt], sampling)


class Client:
    """Sends requests to a server as plain HTTP."""

    def __init__(self, port, key=''):
        self.port = port
        self.headers = {'Content-Type': 'application/json'}
        if key:
            self.headers['Authorization'] = f'Bearer {key}'

    def connect(self, timeout=60) -> HTTPConnection:
        return HTTPConnection('127.0.0.1', self.port, timeout=timeout)

    def request(self, path, body=None, *, method=None, headers=None) -> tuple[int, dict, bytes]:
        """Returns status, headers and body of the response."""
        connection = self.connect()
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        method = method or ('GET' if body is None else 'POST')
        connection.request(method, path, data, self.headers if headers is None else headers)
        response = connection.getresponse()
        found = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return found

    def ask(self, path, **body):
        """Returns the JSON of a request that must succeed."""
        status, _, content = self.request(path, body)
        assert status == 200, content
        return json.loads(content)

    def events(self, path, **body):
        """Yields the JSON values of a stream; `[DONE]` must end it."""
        connection = self.connect()
        connection.request('POST', path, json.dumps(body | {'stream': True}), self.headers)
        with connection.getresponse() as response:
            assert response.status == 200, response.read()
            lines = [line.decode().strip() for line in response]
        data = [line.removeprefix('data: ') for line in lines if line]
        assert data.pop() == '[DONE]'
        yield from map(json.loads, data)

    def metric(self, name) -> float:
        """Returns the number of the only model, or of the only label."""
        lines = self.request('/metrics')[2].decode().splitlines()
        [line] = [line for line in lines if line.startswith(f'gpt_jax_{name}{{')]
        return float(line.rpartition(' ')[2])


@contextlib.contextmanager
def serving(gpt=None, *, keys=(), origins=(), names=('tiny',), **serve):
    """Runs a server in this process; yields a client of it."""
    from gpt_jax.serve.http.served import ModelCard, ServedModel, ServedModels
    from gpt_jax.serve.http.server import HttpServer, listen

    gpt = gpt or fit()
    sampling = {'prompt': 'Alice', 'temperature': 0.0, 'max_new_tokens': 20}
    config = ServeConfig(**{'rows': 3, 'prefill_chunk': 32} | serve)

    def load() -> ServedModels:
        return ServedModels(
            [
                ServedModel(
                    name=name,
                    step=60,
                    engine=Engine(gpt.config.model, gpt.params, gpt.tokenizer, config),
                    tokenizer=gpt.tokenizer,
                    context=gpt.config.model.max_seq_len,
                    created=1,
                    fingerprint='f',
                    card=ModelCard(about='tiny', layers=2, heads=2, sampling=sampling),
                    attention=TokenAttention(gpt.inspector),
                    explanation=TokenExplanation(gpt.inspector),
                )
                for name in names
            ]
        )

    listener = listen('127.0.0.1', 0)
    server = HttpServer(listener, config, keys=list(keys), origins=list(origins))
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(load, lambda _: ready.set()), daemon=True)
    thread.start()
    try:
        assert ready.wait(120)
        yield Client(listener.getsockname()[1], *keys[:1])
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def submit(engine, *arguments, **options):
    """Queues one request, of which `Engine.prepare` takes the arguments, and returns it."""
    request = engine.prepare(*arguments, **options)
    engine.enqueue([request])
    return request


def until(condition, *, seconds=20):
    """Waits until a condition holds, and fails if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it never came true'
        time.sleep(0.02)
