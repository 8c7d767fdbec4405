"""Decoding with a cache against the whole model on the whole text, every time anew."""

import collections
import functools
import itertools
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.inference import decode, programs
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.decode import Decoder
from gpt_jax.model.attention import Latent
from gpt_jax.model.gpt import GPT, init_params
from gpt_jax.model.layer_stack import to_executed
from tests.model_configs import make_config

VOCAB, EOT = 69, 69  # of the model's 70 ids all but the last are drawn: texts do not end
PROMPTS = ((5,), (11, 60, 2, 33), (1, 2, 3, 4, 5, 6, 7, 8, 9))
GREEDY = dict(temperature=0.0, max_new_tokens=20)


def make_model(**changes):
    """A config and weights; large ones, so that what is likely depends on the whole text."""
    values = dict(max_seq_len=48, num_layers=1, d_model=16, init_std=0.3, tie_embeddings=False)
    config = make_config(**(values | changes))
    return config, nn.unbox(jax.jit(functools.partial(init_params, config))(jax.random.key(1)))


def make_decoder(vocab_size=VOCAB, eot_id=EOT, **changes):
    return Decoder(*make_model(**changes), vocab_size=vocab_size, eot_id=eot_id)


@functools.cache
def build(vocab_size=VOCAB, eot_id=EOT, **changes):
    """A decoder, and its model as a function of a text to the logits of the next token."""
    config, params = make_model(**changes)
    model, executed = GPT(config), to_executed(params, config, scan=False)
    run = jax.jit(lambda tokens: model.apply({'params': executed}, tokens)[0])

    def next_logits(text):
        padding = [0] * (config.max_seq_len - len(text))  # behind the text: nothing sees it
        return np.asarray(run(np.array([[*text, *padding]], np.int32)))[
            0, len(text) - 1, :vocab_size
        ]

    return Decoder(config, params, vocab_size=vocab_size, eot_id=eot_id), next_logits


def generate(decoder, prompts, *, chunk=0, **sampling):
    """The new ids of each row, and the most that came at a time."""
    pieces = list(decoder.generate(prompts, SampleConfig(**sampling), chunk=chunk))
    rows = [list(itertools.chain(*row)) for row in zip(*pieces, strict=True)]
    return rows, [max(map(len, piece)) for piece in pieces]


@functools.cache
def greedy_text(prompt, *, count, **changes):
    """The likeliest continuation by the documented rule for texts that outgrow the context."""
    decoder, next_logits = build(**changes)
    context = decoder.config.max_seq_len
    text, visible = list(prompt), len(prompt)
    for _ in range(count):
        if visible > context:
            visible = max(1, context // 2)
        text.append(int(next_logits(text[-visible:]).argmax()))
        visible += 1
    return text[len(prompt) :]


@pytest.mark.parametrize('chunk', [1, 3, 16])
def test_greedy_equals_the_model_without_a_cache(chunk):
    decoder, _ = build()
    expected = [greedy_text(prompt, count=20) for prompt in PROMPTS]
    assert all(len(set(text)) > 5 for text in expected)
    together, sizes = generate(decoder, PROMPTS, chunk=chunk, **GREEDY)
    assert together == expected
    assert sizes == [chunk] * (20 // chunk) + [20 % chunk] * (20 % chunk > 0)
    for prompt, text in zip(PROMPTS, expected, strict=True):
        assert generate(decoder, [prompt], chunk=chunk, **GREEDY)[0] == [text]


@pytest.mark.parametrize(
    'changes',
    [
        dict(position='rope', num_layers=2, num_kv_heads=2, window_pattern=(5, 0)),
        dict(position='alibi', num_layers=2, output_soft_cap=5.0, norm='rmsnorm'),
        dict(
            position='rope',
            num_layers=2,
            attention=freeze(Latent(kv_rank=8, rope_dim=4)),
            window_pattern=(5, 0),
        ),
    ],
    ids=['rope', 'alibi', 'latent'],
)
def test_greedy_with_other_architectures(changes):
    decoder, _ = build(**changes)
    expected = [greedy_text(prompt, count=20, **changes) for prompt in PROMPTS]
    assert generate(decoder, PROMPTS, chunk=16, **GREEDY)[0] == expected


def test_samples_are_the_same_alone_and_together_and_in_all_chunks():
    decoder, next_logits = build()
    sampling = dict(temperature=1.0, seed=3, max_new_tokens=20)
    alone, _ = generate(decoder, PROMPTS[:1], chunk=16, **sampling)
    for chunk in (1, 3, 16):
        together, _ = generate(decoder, PROMPTS, chunk=chunk, **sampling)
        assert together[0] == alone[0], chunk
        assert together == generate(decoder, PROMPTS, chunk=16, **sampling)[0]
    twins, _ = generate(decoder, PROMPTS[:1] * 3, chunk=16, **sampling)
    assert twins[0] == alone[0]
    assert len({tuple(row) for row in twins}) == 3, 'rows draw independently'
    other, _ = generate(decoder, PROMPTS, chunk=16, **(sampling | {'seed': 4}))
    assert all(a != b for a, b in zip(other, together, strict=True))


def test_repetition_penalty_sees_prompt_and_text():
    decoder, _ = build()
    (text,), _ = generate(decoder, PROMPTS[2:], repetition_penalty=1e6, chunk=16, **GREEDY)
    assert len({*text, *PROMPTS[2]}) == len(text) + len(PROMPTS[2])
    (text,), _ = generate(decoder, PROMPTS[2:], chunk=16, **GREEDY)
    assert len({*text, *PROMPTS[2]}) < len(text) + len(PROMPTS[2])


def test_ids_beyond_the_tokenizer_are_never_drawn():
    wild = dict(temperature=100.0, max_new_tokens=20)  # all ids are about as likely
    everything, _ = generate(build()[0], PROMPTS, chunk=16, **wild)
    assert 50 < np.max(everything) < VOCAB
    few, _ = generate(build(vocab_size=4, eot_id=3)[0], PROMPTS, chunk=4, **wild)
    assert set(itertools.chain(*few)) == {0, 1, 2, 3}


def test_the_end_of_text_ends_rows_and_then_the_call():
    decoder, _ = build(vocab_size=4, eot_id=3)
    sampling = dict(temperature=100.0, max_new_tokens=20, chunk=4, seed=1)
    rows, sizes = generate(decoder, PROMPTS, **sampling)
    ends = [row.index(3) for row in rows]
    assert len(set(ends)) == 3 and max(ends) < 16, ends
    for row, end in zip(rows, ends, strict=True):
        assert row[end:] == [3]
    assert sizes == [4] * (max(ends) // 4) + [max(ends) % 4 + 1], 'no token after the last end'


@pytest.mark.parametrize('length', [5, 10, 12])
def test_a_text_that_outgrows_the_context_goes_on_from_its_last_half(length):
    decoder, _ = build(max_seq_len=12)
    prompts = [tuple(range(1, 1 + length)), (40, 41)]
    expected = [greedy_text(p, count=30, max_seq_len=12) for p in prompts]
    for chunk in (0, 1, 4):
        rows, _ = generate(decoder, prompts, temperature=0.0, max_new_tokens=30, chunk=chunk)
        assert rows == expected, chunk


def test_randomness_and_penalty_go_on_when_the_context_is_full():
    decoder, _ = build(max_seq_len=12)
    sampling = dict(temperature=0.0, repetition_penalty=1e6, max_new_tokens=30, chunk=4)
    (text,), _ = generate(decoder, [(1, 2, 3)], **sampling)
    assert len({1, 2, 3, *text}) == 33, 'forgotten tokens still count as seen'
    (text,), _ = generate(decoder, [(1, 2, 3)], temperature=100.0, max_new_tokens=30, chunk=4)
    blocks = {tuple(text[i : i + 4]) for i in range(0, 28, 4)}
    assert len(blocks) == 7, 'the same draws came again'


@pytest.mark.parametrize(
    ('prompt', 'message'),
    [((), 'the prompt is empty'), (tuple(range(13)), r'13 tokens.*config\.model\.max_seq_len')],
    ids=['empty', 'long'],
)
def test_impossible_prompts_are_refused(prompt, message):
    decoder, _ = build(max_seq_len=12)
    with pytest.raises(UserError, match=message):
        generate(decoder, [(1, 2), prompt])


@pytest.fixture
def compiled(caplog):
    """A function that calls another and tells which programs of decoding that compiled."""

    def run(call):
        caplog.clear()
        with jax.log_compiles():
            call()
        found = [re.search(r'Compiling jit\((\w+)\)', record.message) for record in caplog.records]
        names = (match[1] for match in found if match)
        return collections.Counter(name for name in names if hasattr(programs, name))

    return run


def test_lengths_and_sampling_values_compile_nothing_anew(compiled):
    decoder, _ = build(d_model=12)
    common = dict(max_new_tokens=8, chunk=4)
    lengths = [(3, 9), (20, 1), (31, 30)]
    values = [
        dict(temperature=0.7, top_k=5, seed=1),
        dict(temperature=1.3, top_p=0.9, seed=2),
        dict(temperature=1.0, top_k=3, top_p=0.5, min_p=0.2, seed=3),
    ]

    def call(pairs):
        for (first, second), sampling in pairs:
            generate(decoder, [[1] * first, [2] * second], **common, **sampling)

    assert compiled(lambda: call([(lengths[0], values[0])])), 'the first call compiles'
    assert not compiled(lambda: call([(pair, rule) for pair in lengths for rule in values]))
    assert compiled(lambda: call([((33, 5), values[0])])), 'the next rung compiles'


def test_programs_are_few_and_shared_by_all_decoders_of_a_config(compiled):
    def call():
        decoder = make_decoder(max_seq_len=300, d_model=12, num_heads=2)
        for length in (5, 23, 40, 60):
            for batch in (1, 2, 3, 4):
                generate(decoder, [[1] * length] * batch, temperature=0.0, max_new_tokens=100)

    rungs = {'prefill': 2, 'resize': 1, 'draw_tokens': 2}  # prompts 32, 64; caches 128, 256
    programs = {name: 3 * count for name, count in rungs.items()}  # batches 1, 2, 4
    counts = compiled(call)
    assert {name: counts[name] for name in programs} == programs
    assert not compiled(call), 'another decoder of the same config'


def test_a_cache_that_grows_changes_nothing():
    decoder, _ = build(max_seq_len=300, position='rope')
    prompts, sampling = (PROMPTS[0], tuple(range(60))), dict(temperature=1.0, max_new_tokens=220)
    small, sizes = generate(decoder, prompts, **sampling)
    assert sizes == [128 - 1 - 60 + 1, 128, 220 - 196], 'the host is asked when the cache is full'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, 'LEAST_CAPACITY', 301)
        large, sizes = generate(decoder, prompts, **sampling)
    assert sizes == [220]
    assert small == large


def test_rows_that_pad_the_batch_change_nothing(monkeypatch):
    expected = generate(build()[0], PROMPTS, temperature=1.0, max_new_tokens=60)[0]
    monkeypatch.setitem(decode.LEAST_ROWS, 'cpu', 8)
    assert generate(make_decoder(), PROMPTS, temperature=1.0, max_new_tokens=60)[0] == expected


def test_a_context_of_one_token():
    decoder, _ = build(max_seq_len=1)
    rows, _ = generate(decoder, [(3,)], temperature=0.0, max_new_tokens=4)
    assert rows == [greedy_text((3,), count=4, max_seq_len=1)]
