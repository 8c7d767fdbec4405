"""Small corpora on disk, and `prepare` into a folder of the test's own without a progress line."""

import contextlib
import dataclasses
import json

import pytest

from gpt_jax import tokenizer as tokenizers
from gpt_jax.data.config import DataConfig
from gpt_jax.data.prepare import prepare


class SilentProgress(contextlib.AbstractContextManager):
    """Remembers what it is told."""

    made: list['SilentProgress'] = []

    def __init__(self, total, *, unit, description):
        self.total, self.unit, self.description, self.updates = total, unit, description, []
        self.made.append(self)

    def update(self, done, **fields):
        self.updates.append((done, fields))

    def __exit__(self, *_):
        pass


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes documents as JSON lines; gives the path."""

    def write(texts, name='corpus.jsonl'):
        path = tmp_path / name
        path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
        return path

    return write


@pytest.fixture
def prepare_into(tmp_path):
    """`prepare` with the byte tokenizer into tmp_path/cache: prepare_into(corpus=…, source=…)."""

    def run(tokenizer=None, *, shard_tokens=2**20, **settings):
        config = DataConfig(cache_dir=str(tmp_path / 'cache'))
        settings = {name: _plain(value) for name, value in settings.items()}
        return prepare(
            dataclasses.replace(config, **settings),
            tokenizer or tokenizers.TokenizerConfig(),
            progress=SilentProgress,
            shard_tokens=shard_tokens,
        )

    SilentProgress.made.clear()
    run.progress = SilentProgress.made
    return run


def _plain(value):
    return value if isinstance(value, (str, int, float, tuple)) else str(value)
