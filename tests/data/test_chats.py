"""Conversations from JSON lines to batches that say what is learned."""

import json
import os

import numpy as np
import pytest

from gpt_jax import tokenizer as tokenizers
from gpt_jax.data import remote_shards
from gpt_jax.data.config import DataConfig
from gpt_jax.data.mixture import open_sources
from gpt_jax.data.pipeline import eval_batches, make_train_pipeline
from gpt_jax.data.prepare import prepare
from gpt_jax.data.shard_manifest import Manifest
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.data.shards import Shards
from gpt_jax.data.split import TRAIN, VALIDATION
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, chat_template
from tests.data.conftest import SilentProgress

BYTE = tokenizers.make_tokenizer(TokenizerConfig(), list)
END = BYTE.eot_id
ROWS, SEQ_LEN = 4, 24
CUT = 31  # of the fixture's conversations, those before are for training


def ask(number: int) -> list[dict]:
    return [
        {'role': 'user', 'content': f'Say {number}.'},
        {'role': 'assistant', 'content': f'A{number}Z'},
    ]


@pytest.fixture
def chats(tmp_path):
    """Writes conversations as JSON lines; gives the path."""

    def write(conversations, name='chats.jsonl'):
        path = tmp_path / name
        path.write_text(''.join(json.dumps({'messages': each}) + '\n' for each in conversations))
        return path

    return write


@pytest.fixture
def folder(prepare_into, chats):
    """Forty conversations in shards of a few each."""
    source = chats(ask(i) for i in range(40))
    folder = prepare_into(corpus='chat', source=source, split='tail:0.25', shard_tokens=200)
    assert len(Manifest.read(folder).splits[TRAIN].shards) > 3
    return folder


def learned_text(tokens, mask) -> str:
    """The learned tokens as text, `.` for each end of text."""
    return ''.join(chr(i) if i < 128 else '.' for i in tokens[mask == 1].tolist())


def answers(first: int, stop: int) -> str:
    return ''.join(f'A{i}Z.' for i in range(first, stop))


def test_shards_know_what_is_learned(folder):
    for split, first, stop in ((TRAIN, 0, CUT), (VALIDATION, CUT, 40)):
        shards = Shards.open(folder, split, tokenizer=BYTE)
        assert not shards.all_learned
        tokens, size = shards.read(0, shards.num_tokens), shards.num_tokens
        mask = shards.loss_mask(0, size)
        assert mask.dtype == np.float32 and set(mask.tolist()) == {0.0, 1.0}
        assert learned_text(tokens, mask) == answers(first, stop)
        for start in range(0, size, 7):  # within and across shards
            for stop in (start + 1, start + 90, size):
                assert np.array_equal(shards.loss_mask(start, min(stop, size)), mask[start:stop])


def test_training_and_evaluation_learn_every_answer_once(folder):
    sources = open_sources(folder, DataConfig(), split=TRAIN, tokenizer=BYTE)
    pipeline = make_train_pipeline(sources, seq_len=SEQ_LEN, batch_size=1, seed=3, segment_ids=True)
    [per_epoch] = pipeline.windows_per_epoch
    whole = Shards.open(folder, TRAIN, tokenizer=BYTE)
    tokens, mask = (read(0, whole.num_tokens) for read in (whole.read, whole.loss_mask))
    found, segments = np.zeros(whole.num_tokens), 0
    for step in range(per_epoch):
        batch = pipeline.batch_at(step)
        assert batch['loss_mask'].dtype == np.float32 and batch['loss_mask'].shape == (1, SEQ_LEN)
        window = batch['tokens'][0]
        [start] = [
            i
            for i in range(len(tokens) - SEQ_LEN)
            if np.array_equal(tokens[i : i + SEQ_LEN + 1], window)
        ]
        targets = slice(start + 1, start + 1 + SEQ_LEN)
        assert np.array_equal(batch['loss_mask'][0], mask[targets])
        found[targets] += 1
        segments += batch['segment_ids'].max() > 1
    assert found[1:].all() and segments
    assert learned_text(tokens, mask) == answers(0, CUT)

    validation = Shards.open(folder, VALIDATION, tokenizer=BYTE)
    batches = eval_batches(validation, seq_len=SEQ_LEN, batch_size=ROWS, limit=0)
    text = ''.join(
        learned_text(tokens[1:], mask)
        for batch in batches
        for tokens, mask in zip(batch['tokens'], batch['loss_mask'], strict=True)
    )
    assert text == answers(CUT, 40)


def test_texts_beside_conversations_are_learned_whole(folder, prepare_into, tmp_path):
    (tmp_path / 'text.txt').write_text('x' * 500)
    text = prepare_into(corpus='text', source=tmp_path / 'text.txt', split='tail:0.2')
    for one, other in ((folder, text), (text, folder)):
        config = DataConfig(mixture=(f'{other}=1',), cache_dir=str(tmp_path / 'cache'))
        sources = open_sources(one, config, split=TRAIN, tokenizer=BYTE)
        pipeline = make_train_pipeline(sources, seq_len=SEQ_LEN, batch_size=ROWS, seed=3)
        seen = set()
        for step in range(4):
            batch = pipeline.batch_at(step)
            for tokens, mask in zip(batch['tokens'], batch['loss_mask'], strict=True):
                of_text = set(tokens.tolist()) == {ord('x')}
                assert mask.all() == of_text
                seen.add(of_text)
        assert seen == {True, False}


def test_shards_travel_with_what_is_learned(s3, folder, tmp_path):
    """Through a bucket: a copy of the spans is verified as the tokens are."""
    remote_shards.publish(folder, f'{s3}/chats', key='--publish')
    config = DataConfig(corpus='shards', source=f'{s3}/chats', cache_dir=str(tmp_path / 'copies'))
    original = Shards.open(folder, TRAIN, tokenizer=BYTE)
    for _ in range(2):
        copy = prepare(config, TokenizerConfig(), progress=SilentProgress)
        assert make_run_tokenizer(copy, TokenizerConfig()).chat_template == chat_template.DEFAULT
        opened = Shards.open(copy, TRAIN, tokenizer=BYTE)
        assert opened.fingerprint == original.fingerprint
        size = original.num_tokens
        assert np.array_equal(opened.loss_mask(0, size), original.loss_mask(0, size))
        path = copy / 'train-00001.spans'
        path.write_bytes(bytes(len(path.read_bytes())))
        os.utime(path, ns=(1, 1))


@pytest.mark.parametrize('damage', ['cut', 'remove'])
def test_damaged_spans_are_named(folder, damage):
    path = sorted(folder.glob('train-*.spans'))[1]
    if damage == 'cut':
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.unlink()
    with pytest.raises(UserError, match=path.name):
        Shards.open(folder, TRAIN, tokenizer=BYTE)


def test_another_template_is_another_folder(prepare_into, chats, tmp_path):
    settings = {'corpus': 'chat', 'source': chats(map(ask, range(9))), 'split': 'tail:0.2'}
    template = tmp_path / 'plain.jinja'
    template.write_text("{{ messages[-1]['content'] }}")
    default = prepare_into(**settings)
    with pytest.raises(UserError, match='chats.jsonl, line 1: .*plain.jinja does not render'):
        prepare_into(**settings, chat_template=template)
    template.write_text(
        '{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}'
    )
    other = prepare_into(**settings, chat_template=template)
    shards = Shards.open(other, VALIDATION, tokenizer=BYTE)
    tokens, mask = shards.read(0, shards.num_tokens), shards.loss_mask(0, shards.num_tokens)
    assert other != default and learned_text(tokens, mask) == 'Say 8.A8Z'
    assert prepare_into(**settings, chat_template=template) == other
    kept = make_run_tokenizer(other, TokenizerConfig())  # also when they are read as shards
    assert kept.chat_template == template.read_text()
    assert make_run_tokenizer(default, TokenizerConfig()).chat_template == chat_template.DEFAULT


def test_the_template_of_a_tokenizer(prepare_into, chats, tmp_path):
    """It makes text of conversations; a run on texts keeps it, whatever it is."""
    source = chats(map(ask, range(9)))
    (tmp_path / 'text.txt').write_text('words ' * 50)
    marks = '{% generation %}{{ messages[1].content }}{% endgeneration %}'
    folders = {}
    for name, template in (('marks', marks), ('damaged', '{% for %}'), ('none', None)):
        BYTE.with_chat(template=template).save(tmp_path / name)
        path = str(tmp_path / name)
        config = TokenizerConfig(path=path)
        if template != '{% for %}':
            folders[name] = prepare_into(
                corpus='chat', source=source, split='tail:0.2', tokenizer=config
            )
        text = prepare_into(
            corpus='text', source=tmp_path / 'text.txt', split='tail:0.2', tokenizer=config
        )
        kept = make_run_tokenizer(text, config)
        assert kept.chat_template == template
    shards = Shards.open(folders['marks'], VALIDATION, tokenizer=BYTE)
    assert learned_text(shards.read(0, 3), shards.loss_mask(0, 3)) == 'A8Z'
    assert folders['none'] != folders['marks']
    none = TokenizerConfig(path=str(tmp_path / 'none'))
    assert make_run_tokenizer(folders['marks'], none).chat_template == marks
    (tmp_path / 'mine.jinja').write_text('{{ mine }}')
    mine = make_run_tokenizer(folders['marks'], none, chat_template=str(tmp_path / 'mine.jinja'))
    assert mine.chat_template == '{{ mine }}'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"text": "hello"}', 'line 2: messages must be a list of at least one object'),
        ('[1]', 'line 2: messages must be a list of at least one object'),
        ('{"messages": [{"role": "user"}]}', 'line 2: message 1 must be an object with the text'),
        (json.dumps({'messages': ask(1)[:1]}), 'line 2 has no message of the assistant'),
        ('{"messages": [', 'line 2 is not valid JSON'),
        ('[' * 10**5, 'line 2 is not valid JSON'),
    ],
)
def test_wrong_rows_are_named(line, message, prepare_into, chats):
    path = chats([ask(0)])
    path.write_text(path.read_text() + line + '\n')
    with pytest.raises(UserError, match=rf'chats.jsonl, {message}') as error:
        prepare_into(corpus='chat', source=path, split='tail:0.2')
    assert '\n' not in str(error.value)
