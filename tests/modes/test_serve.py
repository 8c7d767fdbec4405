"""`--mode serve`, as a process: ready, the texts of `--mode generate`, and an end that waits."""

import json
import re
import signal
import threading

import pytest

from tests.command_line import TINY, run
from tests.serve.tiny import Client, until
from tests.template import Command

pytest.importorskip('uvicorn', reason='needs the extra serve')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'tiny'
    run('--config', TINY, '--workdir', str(folder))
    return folder


def start(workdir, *arguments) -> tuple[Command, Client]:
    command = Command('--workdir', str(workdir), '--mode', 'serve', '--port', '0', *arguments)
    until(lambda: re.search('^ready: ', command.output(), re.MULTILINE), seconds=120)
    port = re.search(r'^http://127\.0\.0\.1:(\d+): loading', command.output(), re.MULTILINE)[1]
    return command, Client(int(port))


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_a_served_run_writes_what_generate_does(workdir, sent):
    text = run(
        '--workdir', str(workdir), '--mode', 'generate', '--prompt', 'Alice', '--temperature',
        '0.7', '--seed', '3', '--max_new_tokens', '40', stderr=-1,
    ).rpartition('\n(')[0].removesuffix('\n')  # fmt: skip
    command, client = start(workdir, '--config.serve.rows=2')
    with command:
        assert '2 rows of up to 48 slots' in command.output()
        found = client.ask(
            '/v1/completions', prompt='Alice', temperature=0.7, seed=3, max_tokens=40
        )
        assert 'Alice' + found['choices'][0]['text'] == text
        assert [model['id'] for model in json.loads(client.request('/v1/models')[2])['data']] == [
            'tiny'
        ]
        texts = []
        long = dict(prompt='Alice', temperature=0, max_tokens=2000)
        ask = lambda: texts.append(client.ask('/v1/completions', **long))  # noqa: E731
        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: client.metric('running') == 1)
        command.send_signal(sent)
        asking.join(60)
        assert texts[0]['usage']['completion_tokens'] == 2000, 'it was not cut off'
        command.wait(60)
        assert command.returncode == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}[sent]
        assert 'Traceback' not in command.output()


def test_two_runs_are_served(workdir, tmp_path):
    other = tmp_path / 'other'
    run('--config', TINY, '--workdir', str(other), '--config.train.num_steps=10')
    command, client = start(workdir, '--also', str(other))
    with command:
        texts = {
            name: client.ask('/v1/completions', model=name, prompt='Alice', logprobs=1)
            for name in ('tiny', 'other')
        }
        assert texts['tiny']['choices'] != texts['other']['choices']
        assert texts['tiny']['system_fingerprint'] != texts['other']['system_fingerprint']


def test_what_cannot_be_served_is_one_line(workdir, tmp_path):
    keys = tmp_path / 'keys'
    keys.write_text('short\n')
    for arguments, part in {
        ('--host', '0.0.0.0'): '--api_key_file',
        ('--api_key_file', str(tmp_path / 'none')): 'none',
        ('--api_key_file', str(keys)): '16 or more',
        ('--port', '70000'): '--port',
        ('--host', '192.0.2.1', '--api_key_file', str(keys)): '16 or more',
        ('--config.serve.rows=0',): 'config.serve.rows',
        ('--cors', 'example.org'): '--cors=example.org is no origin',
        ('--cors', 'https://example.org/path'): '--cors=https://example.org/path is no origin',
        ('--also', str(workdir)): 'different folder names',
        ('--also', str(tmp_path / 'nothing')): 'nothing',
    }.items():
        output = run('--workdir', str(workdir), '--mode', 'serve', *arguments, status=2)
        [line] = [line for line in output.splitlines() if line.startswith('error: ')]
        assert part in line
    keys.write_text('k' * 16)
    output = run(
        '--workdir', str(workdir), '--mode', 'serve', '--host', '192.0.2.1', '--api_key_file',
        str(keys), status=2,
    )  # fmt: skip
    assert '--host=192.0.2.1 --port=8000' in output
