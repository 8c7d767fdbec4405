"""Loads a server of a run with many clients, and checks every text that it writes.

    python benchmarks/serving.py --workdir runs/quickstart [--seconds 120] [--clients 64]

Starts `--mode serve` as a process of its own. First eight clients ask for as much as they can, each
on one connection, as OpenAI's does; their tokens/s are compared with the same batches of
`Generator`, which `--mode benchmark` times, in rounds of both. Then all clients ask for texts of
mixed lengths: some streamed, some sampled, some read slowly; a quarter hang up; and from time to
time a client asks for more than may wait. Every text must be the one that `--mode generate` writes,
and no status may come but 200 and 429. Prints both rates and the median of their ratios, the time
to the first token and the server's memory; fails if something was wrong.
"""

import argparse
import asyncio
import collections
import dataclasses
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time

import pairing

sys.path.insert(0, pairing.ROOT)

from gpt_jax import GPT
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Generator

ROWS = 8
STEADY = 8  # clients of the first part
ROUNDS, ROUND_SECONDS = 12, 1.5  # of it
TEXTS = 48  # different requests
SLOW_READ = 0.2  # seconds between parts


@dataclasses.dataclass(frozen=True)
class Ask:
    """One kind of request, and the text that must come."""

    body: dict
    text: str


def make_asks(generator: Generator, ids: list[int], context: int) -> list[Ask]:
    """Returns requests with prompts out of `ids`, of mixed lengths; half are sampled."""
    draw = random.Random(0)
    asks = []
    for number in range(TEXTS):
        length = draw.choice([1, 3, 10, context // 4, context // 2, context - 2])
        start = draw.randrange(len(ids) - length)
        prompt, tokens = ids[start : start + length], draw.choice([4, 16, 64, 100])
        temperature = 0.8 * (number % 2)
        sampling = SampleConfig(temperature=temperature, seed=number, max_new_tokens=tokens)
        [text] = generator.generate([prompt], sampling)
        body = {'prompt': prompt, 'max_tokens': tokens, 'temperature': temperature, 'seed': number}
        asks.append(Ask(body, text.text))
    return asks


def make_request(body: dict, headers: bytes = b'') -> bytes:
    """Returns the bytes of a request for a completion."""
    data = json.dumps(body).encode()
    headers += b'Content-Type: application/json\r\nContent-Length: %d\r\n' % len(data)
    return b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n' + headers + b'\r\n' + data


class Load:
    """The clients, and what they saw."""

    def __init__(self, port: int, asks: list[Ask]):
        self._port = port
        self._asks = asks
        self.statuses: collections.Counter[str] = collections.Counter()
        self.first: list[float] = []  # seconds to the first part of streams
        self.wrong: list[str] = []
        self.tokens = 0
        self.hung_up = 0

    async def client(self, number: int, *, until: float) -> None:
        """Asks again and again."""
        draw = random.Random(number)
        while time.monotonic() < until:
            ask = draw.choice(self._asks)
            kind = draw.choices(
                ['whole', 'stream', 'slow', 'hang up', 'flood'], [30, 30, 10, 25, 5]
            )[0]
            if kind == 'flood':
                await asyncio.gather(*(self._ask(ask, kind, draw) for _ in range(8)))
            else:
                await self._ask(ask, kind, draw)

    async def steady(self, ask: Ask, *, until: float) -> None:
        """Asks for one text again and again, whole, on one connection."""
        reader, writer = await asyncio.open_connection('127.0.0.1', self._port)
        while time.monotonic() < until:
            writer.write(make_request(ask.body))
            head = await reader.readuntil(b'\r\n\r\n')
            length = int(re.search(rb'content-length: (\d+)', head)[1])
            text = json.loads(await reader.readexactly(length))['choices'][0]['text']
            self._check(ask, text)
        writer.close()

    async def _ask(self, ask: Ask, kind: str, draw: random.Random) -> None:
        is_stream = kind in ('stream', 'slow') or (kind == 'hang up' and draw.random() < 0.5)
        reader, writer = await asyncio.open_connection('127.0.0.1', self._port, limit=2**22)
        try:
            began = time.monotonic()
            writer.write(make_request(ask.body | {'stream': is_stream}, b'Connection: close\r\n'))
            await writer.drain()
            if kind == 'hang up':
                await asyncio.sleep(draw.random() * 0.5)
                self.hung_up += 1
                return
            status = (await reader.readline()).split()[1].decode()
            self.statuses[status] += 1
            if status != '200':
                content = await reader.read()
                if status != '429':
                    self.wrong.append(f'status {status}: {content[-300:]!r}')
                return
            text = await self._read(reader, kind, began, is_stream)
            self._check(ask, text)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.statuses[type(error).__name__] += 1
            self.wrong.append(f'{kind}: {error!r}')
        finally:
            writer.close()

    def _check(self, ask: Ask, text: str) -> None:
        self.tokens += ask.body['max_tokens']
        if text != ask.text:
            self.wrong.append(f'{ask.body} gave {text!r}, expected {ask.text!r}')

    async def _read(
        self, reader: asyncio.StreamReader, kind: str, began: float, is_stream: bool
    ) -> str:
        if not is_stream:
            content = await reader.read()
            return json.loads(content.partition(b'\r\n\r\n')[2])['choices'][0]['text']
        text, is_first = '', True
        async for line in reader:
            if not line.startswith(b'data: {'):
                continue
            event = json.loads(line[6:])
            if 'error' in event:
                return str(event)
            part = event['choices'][0]['text']
            if part and is_first:
                self.first.append(time.monotonic() - began)
                is_first = False
            text += part
            if kind == 'slow':
                await asyncio.sleep(SLOW_READ)
        return text


class Server:
    """`--mode serve` as a process."""

    def __init__(self, workdir: str):
        command = [sys.executable, '-m', 'gpt_jax.main', '--workdir', workdir, '--mode', 'serve']
        command += ['--port', '0', f'--config.serve.rows={ROWS}']
        self._process = subprocess.Popen(
            command, cwd=pairing.ROOT, stdout=subprocess.PIPE, text=True
        )
        self.port = 0
        for line in self._process.stdout:
            print(line, end='')
            if match := re.match(r'http://127\.0\.0\.1:(\d+): loading', line):
                self.port = int(match[1])
            if line.startswith('ready: '):
                return
        raise SystemExit('the server did not start')

    def memory(self) -> float:
        """Returns the resident memory in MB."""
        with open(f'/proc/{self._process.pid}/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGESIZE') / 1e6

    def stop(self) -> None:
        """Ends it, and its texts."""
        self._process.terminate()
        self._process.wait(60)


async def run(load: Load, clients: int, seconds: float) -> None:
    """Runs so many mixed clients."""
    until = time.monotonic() + seconds
    await asyncio.gather(*(load.client(i, until=until) for i in range(clients)))


async def run_steady(load: Load, asks: list[Ask], seconds: float) -> float:
    """Returns tokens/s of eight clients."""
    began, before = time.monotonic(), load.tokens
    await asyncio.gather(*(load.steady(ask, until=began + seconds) for ask in asks))
    return (load.tokens - before) / (time.monotonic() - began)


def time_generator(generator: Generator, prompts: list[list[int]], sampling: SampleConfig) -> float:
    """Returns tokens/s of batches, prompts included; the median of five."""
    rates = []
    generator.generate(prompts, sampling)
    for _ in range(5):
        began = time.monotonic()
        texts = generator.generate(prompts, sampling)
        rates.append(sum(len(text.tokens) for text in texts) / (time.monotonic() - began))
    return statistics.median(rates)


def percentile(values: list[float], share: float) -> float:
    """Returns the value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    """Returns 1 if a text or a status was wrong, or the memory grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', default='runs/quickstart')
    parser.add_argument('--seconds', type=float, default=120.0)
    parser.add_argument('--clients', type=int, default=64)
    flags = parser.parse_args()
    gpt = GPT.load(flags.workdir)
    context = gpt.config.model.max_seq_len
    plain = {*range(gpt.tokenizer.vocab_size)} - {*gpt.tokenizer.special_tokens.values()}
    ids = random.Random(1).choices(sorted(plain), k=10 * context)
    generator = Generator(gpt.config.model, gpt.params, gpt.tokenizer)
    asks = make_asks(generator, ids, context)
    length, tokens = 8, min(100, context - 10)
    prompts = [ids[20 * i : 20 * i + length] for i in range(STEADY)]
    greedy = SampleConfig(temperature=0.0, max_new_tokens=tokens)
    steady = [
        Ask(
            {'prompt': prompt, 'max_tokens': tokens, 'temperature': 0},
            generator.generate([prompt], greedy)[0].text,
        )
        for prompt in prompts
    ]
    print(f'{pairing.usable_cores()} cores')
    server = Server(flags.workdir)
    try:
        load = Load(server.port, asks)
        rates = [(0.0, time_generator(generator, prompts, greedy))]
        for _ in range(ROUNDS):
            rate = asyncio.run(run_steady(load, steady, ROUND_SECONDS))
            rates.append((rate, time_generator(generator, prompts, greedy)))
        asyncio.run(run(load, flags.clients, flags.seconds / 4))
        before = server.memory()
        asyncio.run(run(load, flags.clients, flags.seconds))
        after = server.memory()
    finally:
        server.stop()
    served, alone = (statistics.median(values) for values in zip(*rates[1:], strict=True))
    # A round of clients is between two of batches.
    ratios = [2 * b[0] / (a[1] + b[1]) for a, b in itertools.pairwise(rates)]
    print(f'8 clients      {served:,.0f} tokens/s, batches of 8 {alone:,.0f}; ratio', end=' ')
    print(f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')
    print(f'{flags.clients} clients     {dict(load.statuses)}, {load.hung_up} hung up')
    first = (percentile(load.first, 0.5), percentile(load.first, 0.99))
    print(f'first token    {first[0]:.2f} s (median), {first[1]:.2f} s (99 %)')
    print(f'memory         {before:,.0f} MB, then {after:,.0f} MB')
    for line in load.wrong[:5]:
        print(f'wrong: {line}')
    grew = after > 1.05 * before + 20
    return int(bool(load.wrong) or grew)


if __name__ == '__main__':
    sys.exit(main())
