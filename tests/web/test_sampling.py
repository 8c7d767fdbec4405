"""Sampling in JavaScript: the filters of Python, draws by their probability, stop strings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.sampling import SeenTokens, filter_logits, make_rule
from tests.web.sessions import Sessions
from tests.weights.random_source import GPT2, make_model

LOGITS = np.random.default_rng(1).normal(0, 2, 40).astype(np.float32)
LOGITS[7] = LOGITS[9] = np.sort(LOGITS)[-3]  # ties, of which top-k keeps all
SEEN = [3, 7, 7, 20, 30, 20, 9, 20]
PROMPT = 4  # of these are of the prompt
SETTINGS = {
    'temperature': dict(temperature=0.5),
    'top-k': dict(temperature=1.5, top_k=3),
    'top-p': dict(temperature=1.0, top_p=0.7),
    'one token': dict(temperature=1.0, top_p=1e-6),
    'min-p': dict(temperature=1.0, min_p=0.2),
    'penalty': dict(temperature=1.0, repetition_penalty=1.7),
    'presence': dict(temperature=1.0, presence_penalty=0.7),
    'frequency': dict(temperature=1.0, frequency_penalty=-0.3),
    'all': dict(
        temperature=0.9,
        top_k=12,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=0.8,
        presence_penalty=0.2,
        frequency_penalty=0.4,
    ),
    'greedy with penalty': dict(temperature=0.0, repetition_penalty=3.0, top_k=2),
}


@pytest.fixture(scope='module')
def sessions(visit, tmp_path_factory):
    sessions = Sessions(visit, tmp_path_factory.mktemp('exports'))
    sessions.export('model', make_model(**GPT2 | dict(vocab_size=257)))
    return sessions


@pytest.mark.parametrize('name', SETTINGS)
def test_filters(sessions, name):
    config = dataclasses.replace(SampleConfig(), **SETTINGS[name])
    seen = SeenTokens(
        jnp.asarray(np.isin(np.arange(40), SEEN[:PROMPT])[None]),
        jnp.asarray(np.bincount(SEEN[PROMPT:], minlength=40)[None]),
    )
    rule = jax.tree.map(jnp.asarray, make_rule([config], vocab_size=40))
    expected = np.asarray(filter_logits(jnp.asarray(LOGITS[None]), seen, rule))[0]
    found = sessions.adjust('model', LOGITS.tolist(), SEEN, PROMPT, **SETTINGS[name])
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    kept = np.isfinite(expected)
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-6)


def test_draws_follow_the_probabilities(sessions):
    draws = sessions.draw('model', LOGITS.tolist(), 20_000, temperature=1.0, seed=3)
    weights = np.exp(LOGITS - LOGITS.max()).astype(np.float64)
    weights /= weights.sum()
    shares = np.bincount(draws, minlength=40) / len(draws)
    deviation = np.sqrt(weights * (1 - weights) / len(draws))
    assert (np.abs(shares - weights) < 5 * deviation).all()
    again = sessions.draw('model', LOGITS.tolist(), 50, temperature=1.0, seed=3)
    other = sessions.draw('model', LOGITS.tolist(), 50, temperature=1.0, seed=4)
    assert again == draws[:50] != other


def test_a_stop_string_ends_the_text(sessions):
    prompt = [*b'The quick']
    whole = sessions.generate('model', prompt)
    text = ''.join(piece['text'] for piece in whole)
    stop = text[4:7]
    pieces = sessions.generate('model', prompt, stop=['never there', stop])
    assert [piece['id'] for piece in pieces] == [piece['id'] for piece in whole][: len(pieces)]
    assert pieces[-1]['ended'] == 'stop' and len(pieces) < len(whole)
    found = ''.join(piece['text'] for piece in pieces)
    assert stop in found and stop not in found[:-1]
