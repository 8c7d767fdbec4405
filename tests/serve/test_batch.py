"""The batch of an engine with other sizes: wide chunks, few tokens."""

import pytest

pytest.importorskip('llguidance', reason='needs the extra serve')

from gpt_jax import GPT
from gpt_jax.inference.config import SampleConfig
from gpt_jax.serve.config import ServeConfig
from gpt_jax.serve.engine import Engine
from gpt_jax.serve.request import RequestOptions
from gpt_jax.tokenizer.char import CharTokenizer
from tests.serve.tiny import alone, submit

GREEDY = SampleConfig(temperature=0.0, max_new_tokens=8)
SIZES = dict(num_layers=1, num_heads=2, d_model=16, d_ff=32)


def test_chunks_that_the_smallest_cache_does_not_hold():
    gpt = GPT(vocab_size=300, max_seq_len=400, **SIZES)
    prompt = [65 + i % 20 for i in range(300)]
    serve = ServeConfig(rows=1, prefill_chunk=256)
    with Engine(gpt.config.model, gpt.params, gpt.tokenizer, serve) as engine:
        found = submit(engine, prompt, GREEDY).result()
    assert found.tokens == alone(gpt, prompt, GREEDY)[0].tokens


def test_a_vocabulary_of_fewer_tokens_than_alternatives():
    tokenizer = CharTokenizer('ACGT')
    gpt = GPT(vocab_size=32, max_seq_len=32, tokenizer=tokenizer, **SIZES)
    with Engine(gpt.config.model, gpt.params, tokenizer, ServeConfig(rows=1)) as engine:
        request = submit(engine, 'ACG', GREEDY, RequestOptions(best=20))
        scores = [score for piece in request for score in piece.scores]
    for score in scores:
        assert {token for token, _ in score.best} == {*range(tokenizer.vocab_size)}
    assert scores
