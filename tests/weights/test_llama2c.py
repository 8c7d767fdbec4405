"""llama2.c: a real trained model from the command line to its text, and files that are wrong."""

import shutil
import struct

import numpy as np
import pytest

from gpt_jax.api import GPT
from gpt_jax.errors import UserError
from gpt_jax.weights import open_source
from tests.command_line import run
from tests.weights.random_source import logits

NATS_PER_TOKEN = 1.3243775  # of 60 stories, by the same weights in numpy in float64


@pytest.fixture(scope='module')
def stories(shared_data):
    """The folder of the trained model."""
    return shared_data / 'weights' / 'stories260K'


@pytest.fixture(scope='module')
def workdir(stories, tmp_path_factory):
    """A run made of it by the command line."""
    workdir = tmp_path_factory.mktemp('stories') / 'run'
    source = str(stories / 'stories260K.bin')
    output = run('--mode=import_weights', f'--source={source}', f'--workdir={workdir}')
    assert '260,032 (float32)' in output
    assert 'begin with <s> (1), end with <s> (1)' in output
    return workdir


def test_greedy_text(stories, workdir):
    flags = (f'--workdir={workdir}', '--mode=generate', '--prompt=', '--temperature=0')
    text = run(*flags, '--max_new_tokens=256')
    expected = (stories / 'expected_greedy.txt').read_text()
    assert text.startswith(expected.rstrip('\n') + '\n')


def test_logits(stories, workdir):
    reference = np.load(stories / 'reference_logits.npz')
    gpt = GPT.load(workdir)
    text = 'Once upon a time, there was a little girl'
    assert [1, *gpt.tokenizer.encode(text)] == reference['ids'].tolist()
    ours = logits(gpt.config.model, gpt.params, reference['ids'][None])[0]
    assert np.abs(ours - reference['logits']).max() <= 1e-4 * np.abs(reference['logits']).max()


@pytest.mark.slow
def test_loss_on_the_sample(stories, workdir, shared_data, tmp_path):
    """The stories of the sample as documents, each begun by the token that began it in training."""
    [sample] = (shared_data / 'corpora' / 'tinystories_sample').glob('*.txt')
    texts = sample.read_text(encoding='utf-8').split('<|endoftext|>')[:60]
    tokenizer = GPT.load(workdir).tokenizer
    ids = [i for text in texts for i in [1, *tokenizer.encode(text.strip())]]
    gpt = GPT.load(workdir)
    windows = np.array([ids[i : i + 513] for i in range(0, len(ids) - 513, 512)])
    total = 0.0
    for some in np.array_split(windows, len(windows) // 16):
        scores = logits(gpt.config.model, gpt.params, some[:, :-1]).astype(np.float64)
        scores -= scores.max(-1, keepdims=True)
        chosen = np.take_along_axis(scores, some[:, 1:, None], -1)[..., 0]
        total += (np.log(np.exp(scores).sum(-1)) - chosen).sum()
    assert total / windows[:, 1:].size == pytest.approx(NATS_PER_TOKEN, abs=1e-5)


def test_library(stories):
    gpt = GPT.from_pretrained(stories / 'stories260K.bin')
    text = gpt.generate('Once upon a time', temperature=0.0, max_new_tokens=10)
    expected = 'Once upon a time, there was a little girl named Lily'
    assert expected.startswith(text) and len(text) > 25
    begin = len(gpt.tokenizer.encode('Once')) + 1  # the token that begins every text counts
    assert len(gpt.tokenizer.encode(gpt.generate('Once', max_length=begin + 3))) == begin + 2


WRONG = {
    'torn': (lambda data: data[:-4], r'has \d+ bytes, its header makes it \d+'),
    'layers': (lambda d: struct.pack('<7i', 64, 64, 2**30, 4, 4, 64, 64), 'its header makes it'),
    'too short': (lambda data: data[:10], 'too short'),
    'another version': (lambda data: struct.pack('<7i', 0x616B3432, 1, *[0] * 5), '--version 0'),
}


@pytest.mark.parametrize(('damage', 'message'), WRONG.values(), ids=WRONG)
def test_wrong_files(damage, message, stories, tmp_path):
    path = tmp_path / 'model.bin'
    path.write_bytes(damage((stories / 'stories260K.bin').read_bytes()))
    with pytest.raises(UserError, match=message):
        open_source(str(path))


def test_a_tokenizer_of_another_size_is_not_taken(stories, tmp_path):
    shutil.copy(stories / 'stories260K.bin', tmp_path / 'model.bin')
    tokenizer = (stories / 'tok512.bin').read_bytes()
    (tmp_path / 'tok.bin').write_bytes(tokenizer[:-1])
    with pytest.raises(
        UserError, match=r'tok.bin is not a tokenizer.bin of llama2.c, or is truncated'
    ):
        open_source(str(tmp_path / 'model.bin'))
    (tmp_path / 'tok.bin').write_bytes(tokenizer[:8] + struct.pack('<i', -8) + tokenizer[12:])
    with pytest.raises(
        UserError, match=r'tok.bin is not a tokenizer.bin of llama2.c, or is truncated'
    ):
        open_source(str(tmp_path / 'model.bin'))
    (tmp_path / 'tok.bin').unlink()
    output = run(
        '--mode=import_weights',
        f'--source={tmp_path / "model.bin"}',
        f'--workdir={tmp_path / "run"}',
        status=2,
    )
    assert 'has no tokenizer; name one: --config.tokenizer.kind=' in output
    assert not (tmp_path / 'run').exists()
