"""Texts that join and leave a batch are those that each prompt gets alone."""

import dataclasses
import re
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.decode import Decoder
from gpt_jax.inference.generate import Ended
from gpt_jax.model.gpt import GPT as Network
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.serve.config import ServeConfig
from gpt_jax.serve.engine import Engine
from gpt_jax.serve.request import (
    EngineStoppedError,
    QueueFullError,
    RequestOptions,
    RequestTimeoutError,
)
from tests.serve.tiny import ARCHITECTURES, SMALL, alone, fit, submit, until
from tests.tiny_config import TEXT

ENDLESS = SampleConfig(temperature=0.0, max_new_tokens=1_000_000)  # it repeats itself


def start(gpt=None, weight_dtype='compute', **serve) -> Engine:
    gpt = gpt or fit()
    serve = ServeConfig(**{'rows': 3, 'prefill_chunk': 32} | serve)
    model = gpt.config.model
    return Engine(model, gpt.params, gpt.tokenizer, serve, weight_dtype=weight_dtype)


def make_prompts(gpt, lengths):
    """Parts of the text, of so many tokens."""
    ids = gpt.tokenizer.encode(TEXT.read_text(encoding='utf-8'))
    return [ids[17 * i : 17 * i + length] for i, length in enumerate(lengths)]


LENGTHS = (1, 140, 9, 33, 64, 5, 149, 16, 17, 100)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_greedy_texts_are_those_of_the_prompts_alone(name):
    """Short and long ones, some of which outgrow the context, in three rows."""
    gpt = fit(name)
    prompts = make_prompts(gpt, LENGTHS)
    samplings = [SampleConfig(temperature=0.0, max_new_tokens=3 + 9 * i) for i in range(10)]
    with start(gpt) as engine:
        requests = []
        for prompt, sampling in zip(prompts, samplings, strict=True):
            requests.append(submit(engine, prompt, sampling))
            time.sleep(0.01)
        texts = [request.result() for request in requests]
    for prompt, sampling, text in zip(prompts, samplings, texts, strict=True):
        assert text == alone(gpt, prompt, sampling)[0]
    assert len({text.text for text in texts}) == 10


def test_weights_as_integers():
    gpt = fit()
    prompts = make_prompts(gpt, (20, 3, 70))
    sampling = SampleConfig(temperature=1.0, max_new_tokens=40, seed=3)
    expected = [alone(gpt, prompt, sampling, weight_dtype='int8')[0] for prompt in prompts]
    with start(gpt, weight_dtype='int8') as engine:
        requests = [submit(engine, prompt, sampling) for prompt in prompts]
        assert [request.result() for request in requests] == expected


SAMPLINGS = [
    dict(temperature=1.0),
    dict(temperature=0.0, repetition_penalty=1.3),
    dict(temperature=0.7, top_k=5),
    dict(temperature=2.0, top_p=0.8, min_p=0.05),
    dict(temperature=0.9, repetition_penalty=1.1),
    dict(temperature=0.0),
]


def test_sampled_texts_depend_on_their_own_seed_and_rule_only():
    gpt = fit()
    prompts = make_prompts(gpt, (20, 3, 70, 41, 140, 120))  # two outgrow the context
    samplings = [
        SampleConfig(max_new_tokens=20 + 7 * i, seed=50 + i, **values)
        for i, values in enumerate(SAMPLINGS)
    ]
    expected = [alone(gpt, *pair)[0].text for pair in zip(prompts, samplings, strict=True)]
    assert alone(gpt, prompts[0], SampleConfig(max_new_tokens=20, temperature=1.0))[0].text not in (
        expected
    ), 'the seed matters'
    for order in (range(6), (5, 0, 3, 1, 4, 2)):
        with start(gpt, rows=4) as engine:
            requests = {i: submit(engine, prompts[i], samplings[i]) for i in order}
            for i, request in requests.items():
                assert request.result().text == expected[i], i


def test_samples_of_a_prompt_are_those_of_num_samples():
    gpt = fit()
    sampling = SampleConfig(temperature=1.0, max_new_tokens=15, seed=3, num_samples=3)
    with start(gpt) as engine:
        requests = [submit(engine, 'Alice', sampling, RequestOptions(sample=i)) for i in range(3)]
        texts = [request.result() for request in requests]
    assert texts == alone(gpt, 'Alice', sampling)
    assert len({text.text for text in texts}) == 3


def test_pieces_make_up_the_text_and_end_at_a_stop_string():
    gpt = fit()
    free = SampleConfig(temperature=0.0, max_new_tokens=60)
    [whole] = alone(gpt, 'Alice', free)
    stop = whole.text[20:23]
    with start(gpt) as engine:
        pieces = list(submit(engine, 'Alice', free))
        stopped = submit(engine, 'Alice', dataclasses.replace(free, stop=(stop,)))
        text = stopped.result()
        assert text.ended == Ended.STOP
        assert text.text == whole.text[: whole.text.index(stop)]
        assert not list(stopped), 'the pieces are gone, and nobody waits'
    assert ''.join(piece.text for piece in pieces) == whole.text
    assert sum((piece.tokens for piece in pieces), []) == whole.tokens
    assert len(pieces) > 1


@pytest.mark.parametrize('loaded', [False, True])
def test_nothing_is_compiled_after_the_start(caplog, tmp_path, loaded):
    """Weights of a checkpoint are committed to a device, those after training are not."""
    gpt = fit()
    if loaded:
        gpt.save(tmp_path / 'run')
        gpt = GPT.load(tmp_path / 'run')
    with start(gpt) as engine:
        with jax.log_compiles():
            caplog.clear()
            requests = [
                submit(engine, prompt, SampleConfig(max_new_tokens=30, seed=i, **values))
                for i, (prompt, values) in enumerate(
                    zip(make_prompts(gpt, LENGTHS), SAMPLINGS * 2, strict=False)
                )
            ]
            options = RequestOptions(best=3, scores_prompt=True, bias={5: 1.0})
            requests.append(submit(engine, 'Alice', SampleConfig(max_new_tokens=5), options))
            for request in requests:
                request.result()
        found = re.findall(r'Compiling [^ ]+', caplog.text)
        assert not found
        assert engine.status().slots == 166, 'the cache grew meanwhile'
        assert (
            engine.programs == 1 + 2 * (2 + 2) + 2 + 2
        )  # empty; two rungs; to the other and back; scores


def test_the_beginning_of_a_prompt_is_reused():
    gpt = fit()
    greedy = SampleConfig(temperature=0.0, max_new_tokens=10)
    first, other = make_prompts(gpt, (60, 50))
    with start(gpt, rows=2) as engine:
        answer = submit(engine, first, greedy).result()
        submit(engine, other, greedy).result()
        dialog = first + answer.tokens + other[:7]
        requests = [submit(engine, prompt, greedy) for prompt in (dialog, other)]
        texts = [request.result() for request in requests]
        assert [request.reused for request in requests] == [70, 49]
        fork = submit(engine, first[:30] + other, greedy)
        assert fork.result() == alone(gpt, first[:30] + other, greedy)[0]
        assert fork.reused == 30
        status = engine.status()
    assert texts == [alone(gpt, prompt, greedy)[0] for prompt in (dialog, other)]
    assert (status.prompt_tokens, status.reused_tokens) == (60 + 50 + 77 + 50 + 80, 70 + 49 + 30)
    assert (status.finished, status.drawn_tokens) == (5, 50)


def test_without_the_cache_texts_are_the_same_and_read_again_for_each_token(monkeypatch):
    """Among other texts; some outgrow the context, and penalties know what was drawn."""
    gpt, read = fit(), []
    extend = Decoder.extend

    def counting_extend(self, state, tokens, **options):
        read.append(len(tokens))
        return extend(self, state, tokens, **options)

    prompts = make_prompts(gpt, (20, 3, 70, 41, 140, 120))
    samplings = [
        SampleConfig(max_new_tokens=20, seed=50 + i, **values) for i, values in enumerate(SAMPLINGS)
    ]
    samplings[3] = dataclasses.replace(samplings[3], presence_penalty=1.5)
    expected = [alone(gpt, *pair)[0].text for pair in zip(prompts, samplings, strict=True)]
    options = [RequestOptions(use_cache=i == 2) for i in range(6)]
    with start(gpt) as engine:
        requests = [submit(engine, *each) for each in zip(prompts, samplings, options, strict=True)]
        assert [request.result().text for request in requests] == expected
        monkeypatch.setattr(Decoder, 'extend', counting_extend)
        greedy = SampleConfig(temperature=0.0, max_new_tokens=10)
        for use_cache in (False, True):
            request = submit(engine, prompts[0], greedy, RequestOptions(use_cache=use_cache))
            seconds = [piece.seconds for piece in request]
            assert request.reused == (19 if use_cache else 0)
            assert min(seconds) > 0 and len(seconds) <= 10
    assert sum(read) == sum(range(20, 30)) + 1


def test_a_cancelled_text_leaves_its_row():
    with start(rows=1) as engine:
        endless, waiting = (submit(engine, 'Alice', ENDLESS) for _ in range(2))
        short = submit(engine, 'Alice', SampleConfig(max_new_tokens=5))
        pieces = iter(endless)
        next(pieces)
        waiting.cancel()
        assert not list(waiting)
        endless.cancel()
        list(pieces)
        assert short.result().ended == Ended.LENGTH
        assert endless.generation.ended is None and endless.generation.text


def test_no_more_requests_wait_than_may():
    with start(rows=1, queue=2) as engine:
        running = submit(engine, 'Alice', ENDLESS)
        next(iter(running))
        waiting = [submit(engine, 'Alice', ENDLESS) for _ in range(2)]
        with pytest.raises(QueueFullError, match=r'config\.serve\.queue'):
            submit(engine, 'Alice', ENDLESS)
        assert (engine.status().running, engine.status().waiting) == (1, 2)
        waiting[0].cancel()
        waiting[0].result()
        submit(engine, 'Alice', ENDLESS)
    with pytest.raises(EngineStoppedError, match='closed'):
        waiting[1].result()
    with pytest.raises(EngineStoppedError, match='closed'):
        running.result()
    with pytest.raises(EngineStoppedError, match='closed'):
        submit(engine, 'Alice', ENDLESS)


def test_late_requests_fail():
    with start(rows=1, queue_seconds=0.5, request_seconds=4.0) as engine:
        running, waiting = (submit(engine, 'Alice', ENDLESS) for _ in range(2))
        with pytest.raises(RequestTimeoutError, match='queue_seconds'):
            waiting.result()
        assert 0.5 < waiting.ended - waiting.submitted < 3.9
        with pytest.raises(RequestTimeoutError, match='request_seconds'):
            running.result()
        assert running.generation.text
        assert 4 < running.ended - running.submitted < 12.5
        submit(engine, 'Alice', SampleConfig(max_new_tokens=3)).result()


def test_a_failure_reaches_every_request(monkeypatch):
    with start(rows=1) as engine:
        running = submit(engine, 'Alice', ENDLESS)
        next(iter(running))
        waiting = submit(engine, 'Alice', ENDLESS)

        def fail(*_, **__):
            raise RuntimeError('out of memory')

        monkeypatch.setattr(engine._decoder, 'draw', fail)
        for request in (running, waiting):
            with pytest.raises(EngineStoppedError, match='out of memory'):
                request.result()
        with pytest.raises(EngineStoppedError, match='out of memory'):
            submit(engine, 'Alice', ENDLESS)


def test_a_text_that_cannot_be_told_fails_with_all_others(monkeypatch):
    with start(rows=2) as engine:
        running = submit(engine, 'Alice', ENDLESS)
        next(iter(running))
        ending = submit(engine, 'Alice', SampleConfig(max_new_tokens=1))

        def fail(*_, **__):
            raise RuntimeError('no text')

        monkeypatch.setattr(ending, 'push', fail)
        for request in (ending, running):
            with pytest.raises(EngineStoppedError, match='no text'):
                request.result()


def logprobs_of(gpt, ids) -> np.ndarray:
    """The log-probabilities `[L, V]` of the tokens after each of `ids`, and the hidden states."""
    config = gpt.config.model
    executed = to_executed(gpt.params, config, scan=False)
    logits, _ = jax.jit(lambda ids: Network(config).apply({'params': executed}, ids))(
        np.array([ids])
    )
    return np.asarray(jax.nn.log_softmax(logits[0, :, : gpt.tokenizer.vocab_size]))


def check_scores(scores, tokens, expected, best):
    """Scores are the rows of `expected`, and have so many of the likeliest tokens."""
    found = [score.logprob for score in scores]
    np.testing.assert_allclose(found, expected[np.arange(len(tokens)), tokens], atol=1e-4)
    for score, row in zip(scores, expected, strict=True):
        ids = np.argsort(-row)[:best]
        assert len(score.best) == best
        np.testing.assert_allclose([value for _, value in score.best], row[ids], atol=1e-4)
        assert [i for i, _ in score.best][:1] == ids[:1].tolist()


@pytest.mark.parametrize('best', [0, 4])
def test_scores_are_those_of_the_model(best):
    gpt = fit()
    sampling = SampleConfig(
        temperature=0.6, top_k=20, max_new_tokens=40, seed=1, presence_penalty=0.5
    )
    prompts = make_prompts(gpt, (30, 75))
    options = [RequestOptions(best=best), RequestOptions(best=best, scores_prompt=True)]
    with start(gpt) as engine:
        requests = [
            submit(engine, *each) for each in zip(prompts, [sampling] * 2, options, strict=True)
        ]
        for prompt, request in zip(prompts, requests, strict=True):
            pieces = list(request)
            tokens = sum((piece.tokens for piece in pieces), [])
            assert tokens == alone(gpt, prompt, sampling)[0].tokens
            expected = logprobs_of(gpt, prompt + tokens)
            scores = sum((piece.scores for piece in pieces), [])
            check_scores(scores, tokens, expected[len(prompt) - 1 : -1], best)
            if request.options.scores_prompt:
                check_scores(request.prompt_scores, prompt[1:], expected[: len(prompt) - 1], best)
            else:
                assert not request.prompt_scores


def test_drafts_change_passes_and_nothing_else():
    gpt = fit()
    prompts = make_prompts(gpt, (30, 9, 140, 64))  # one outgrows the context
    samplings = [
        SampleConfig(temperature=0.0, max_new_tokens=60),
        SampleConfig(temperature=0.9, max_new_tokens=50, seed=4),
        SampleConfig(temperature=0.0, max_new_tokens=70, repetition_penalty=1.05),
        SampleConfig(temperature=0.5, max_new_tokens=33, frequency_penalty=0.1, top_k=30),
    ]
    with start(gpt, rows=2, draft_tokens=5) as engine:
        before = np.asarray(engine._batch.state.passes_B)
        requests = [
            submit(engine, *each, RequestOptions(best=3))
            for each in zip(prompts, samplings, strict=True)
        ]
        for prompt, sampling, request in zip(prompts, samplings, requests, strict=True):
            pieces = list(request)
            tokens = sum((piece.tokens for piece in pieces), [])
            assert tokens == alone(gpt, prompt, sampling)[0].tokens
            if len(prompt) + len(tokens) <= 150:
                scores = sum((piece.scores for piece in pieces), [])
                expected = logprobs_of(gpt, prompt + tokens)[len(prompt) - 1 : -1]
                check_scores(scores, tokens, expected, 3)
        passes = np.asarray(engine._batch.state.passes_B) - before
    # Of the two texts that used the rows last; a text begins its count anew.
    assert 0 < passes.sum() < 70 + 33 - 10, 'some guesses were accepted'


def test_a_prompt_alone_is_scored():
    """Beside another text, which it must not change; after it the row is free."""
    gpt = fit()
    [prompt] = make_prompts(gpt, (149,))
    greedy = SampleConfig(temperature=0.0, max_new_tokens=90)
    with start(gpt, rows=2) as engine:
        beside = submit(engine, 'Alice', greedy)
        request = submit(engine, prompt, greedy, RequestOptions(scores_prompt=True, draws=False))
        assert list(request) == [] and not request.generation.tokens
        check_scores(request.prompt_scores, prompt[1:], logprobs_of(gpt, prompt)[:-1], 0)
        assert beside.result() == alone(gpt, 'Alice', greedy)[0]
        again = submit(engine, prompt, greedy, RequestOptions(scores_prompt=True))
        assert again.result().tokens and again.reused == 0
        check_scores(again.prompt_scores, prompt[1:], logprobs_of(gpt, prompt)[:-1], 0)
    config = gpt.config.model
    executed = to_executed(gpt.params, config, scan=False)
    hidden, _ = Network(config).apply({'params': executed}, jnp.array([prompt]), method='hidden')
    np.testing.assert_allclose(request.hidden, hidden[0].mean(0), atol=1e-4)


def test_a_bias_forbids_and_forces_tokens():
    gpt = fit()
    greedy = SampleConfig(temperature=0.0, max_new_tokens=20)
    [free] = alone(gpt, 'Alice', greedy)
    first = free.tokens[0]
    with start(gpt) as engine:
        without = submit(engine, 'Alice', greedy, RequestOptions(bias={first: -100.0}))
        only = submit(engine, 'Alice', greedy, RequestOptions(bias={first: 100.0}))
        beside = submit(engine, 'Alice', greedy)
        assert first not in without.result().tokens
        assert set(only.result().tokens) == {first}
        assert beside.result() == free
        with pytest.raises(UserError, match='not in the vocabulary'):
            submit(engine, 'Alice', greedy, RequestOptions(bias={300: 1.0}))
        with pytest.raises(UserError, match=r'config\.serve\.best=20'):
            submit(engine, 'Alice', greedy, RequestOptions(best=21))


def test_prompts_hold_up_other_texts_for_a_stated_time():
    gpt = fit()
    short, long = make_prompts(gpt, (5, 140))
    with start(gpt, rows=2, prefill_chunk=64, stall_seconds=0.3) as engine:
        engine._batch.seconds = {16: 0.2, 64: 0.5}  # as if the model were large
        widths, extend = [], engine._decoder.extend

        def note(*arguments, width, **options):
            widths.append(width)
            return extend(*arguments, width=width, **options)

        engine._decoder.extend = note
        submit(engine, long, SampleConfig(max_new_tokens=1)).result()
        assert widths == [64, 64, 16], 'nobody was held up'
        running = submit(engine, short, ENDLESS)
        next(iter(running))
        widths.clear()
        submit(engine, long[::-1], SampleConfig(max_new_tokens=1)).result()
        assert set(widths) == {16}
        running.cancel()


def test_who_polls_is_notified():
    calls = []
    with start() as engine:
        sampling = SampleConfig(temperature=0.0, max_new_tokens=60)
        request = engine.prepare('Alice', sampling, notify=lambda: calls.append(request.poll()))
        engine.enqueue([request])
        until(lambda: request.ended)  # `result` would take pieces, too
    pieces = sum(calls, [])
    assert ''.join(piece.text for piece in pieces) == request.generation.text
    assert not request.poll() and len(calls) > 2


def test_the_cache_grows_and_shrinks_and_has_the_bytes_that_are_stated():
    gpt = GPT(**SMALL | dict(max_seq_len=600))
    gpt.fit(TEXT, steps=1, batch_size=2, quiet=True)
    with start(gpt, rows=2) as engine:
        few = SampleConfig(temperature=0.0, max_new_tokens=5)
        long, short = make_prompts(gpt, (580, 40))
        slots = [engine.status().slots]
        for prompt in (short, long, short):
            assert submit(engine, prompt, few).result() == alone(gpt, prompt, few)[0]
            slots.append(engine.status().slots)
            if prompt is long:
                arrays = jax.tree.leaves(engine._batch.state.cache.layers)
                assert engine.cache_bytes == sum(array.nbytes for array in arrays)
        assert slots == [128, 128, 616, 128]
        # A row of the small cache has lost its later tokens.
        again = submit(engine, long, few)
        assert again.result() == alone(gpt, long, few)[0]
        assert again.reused == 128
        assert '2 rows of up to 616 slots' in str(engine)


def test_many_threads_submit():
    gpt = fit()
    sampling = SampleConfig(temperature=1.0, max_new_tokens=12)
    texts = {}
    with start(gpt, rows=4) as engine:

        def ask(i):
            request = submit(engine, 'Alice', sampling, RequestOptions(sample=i))
            texts[i] = ''.join(piece.text for piece in request)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    whole = SampleConfig(temperature=1.0, max_new_tokens=12, num_samples=12)
    assert [texts[i] for i in range(12)] == [each.text for each in alone(gpt, 'Alice', whole)]


@pytest.mark.parametrize(
    ('key', 'serve'),
    [
        ('rows', dict(rows=0)),
        ('queue', dict(queue=0)),
        ('queue_seconds', dict(queue_seconds=0.0)),
        ('request_seconds', dict(request_seconds=-1.0)),
        ('prefill_chunk', dict(prefill_chunk=15)),
        ('stall_seconds', dict(stall_seconds=0.0)),
        ('draft_tokens', dict(draft_tokens=33)),
        ('best', dict(best=0)),
    ],
)
def test_impossible_settings_are_named(key, serve):
    with pytest.raises(UserError, match=rf'^config\.serve\.{key}='):
        start(**serve)


def test_impossible_requests_are_refused():
    with start() as engine:
        with pytest.raises(UserError, match=r'config\.sample\.top_p'):
            submit(engine, 'Alice', SampleConfig(top_p=0.0))
        with pytest.raises(UserError, match=r'config\.model\.max_seq_len'):
            submit(engine, [1] * 151, SampleConfig())
