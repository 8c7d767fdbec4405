"""Text with drafts is the text without them; drafts are found where the text repeats itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.inference import decode
from gpt_jax.inference.decode import Decoder
from gpt_jax.inference.speculative import count_accepted, find_ends, propose
from tests.inference.test_decode import PROMPTS, build, generate, make_model


def propose_by_definition(text, *, count):
    """The rule for one row, in plain Python."""
    last, best = len(text) - 1, (-1, -1)
    for place in range(last):
        matched = 0
        while matched < 3 and place >= matched and text[place - matched] == text[last - matched]:
            matched += 1
        best = max(best, (matched, place))
    text = list(text)
    for _ in range(count):
        text.append(text[len(text) - (last - best[1])])
    return text[last + 1 :]


def test_drafts_follow_the_definition():
    random = np.random.default_rng(0)
    for length, slots in ((2, 12), (7, 12), (12, 12), (30, 40)):
        text_BS = random.integers(0, 4, (20, slots))
        length_B = random.integers(2, length + 1, 20)
        drafts = propose(jnp.asarray(text_BS), jnp.asarray(length_B), count=5)
        expected = [
            propose_by_definition(row[:own].tolist(), count=5)
            for row, own in zip(text_BS, length_B, strict=True)
        ]
        assert drafts.tolist() == expected


def test_each_row_accepts_its_own_drafts_and_none_after_its_end():
    eot = 9
    tokens = jnp.array([[1, 2, 3, 4], [5, eot, 3, 4], [eot, 7, 8, 8], [1, 2, 3, 4]])
    ended = find_ends(tokens, eot_id=eot)
    rows = [[False] * 4, [False, True, True, True], [True] * 4, [False] * 4]
    assert ended.tolist() == rows
    drawn = jnp.array([[2, 3, 0], [eot, 3, 4], [7, 8, 8], [0, 3, 4]])
    assert count_accepted(tokens[:, 1:], drawn, ended[:, :-1]).tolist() == [2, 1, 0, 0]


ARCHITECTURES = {
    'learned': dict(),
    'rope, window': dict(position='rope', num_layers=2, window_pattern=(5, 0)),
    'alibi, gqa': dict(position='alibi', num_kv_heads=2),
    'full context': dict(max_seq_len=12),
}


@pytest.mark.slow
@pytest.mark.parametrize('changes', ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_text_is_the_same_with_drafts(changes):
    decoder, _ = build(**changes)
    for sampling in (
        dict(temperature=0.0),
        dict(temperature=0.5, top_k=4, repetition_penalty=1.1, seed=2),
    ):
        sampling |= dict(max_new_tokens=45)
        plain, _ = generate(decoder, PROMPTS, **sampling)
        for drafts, chunk in ((1, 0), (4, 7)):
            found, _ = generate(decoder, PROMPTS, draft_tokens=drafts, chunk=chunk, **sampling)
            assert found == plain, (sampling, drafts)
        (alone,), _ = generate(decoder, PROMPTS[2:], draft_tokens=4, **sampling)
        solo = generate(decoder, PROMPTS[2:], **sampling)[0][0]
        assert alone == solo


def repeating(**changes):
    """A decoder whose model likes to repeat the token before: few tokens, small other weights."""
    config, params = make_model(vocab_size=4, tie_embeddings=True, init_std=0.05, **changes)
    params['embedding']['table'] = params['embedding']['table'].at[:4, :4].add(jnp.eye(4))
    return Decoder(config, params, vocab_size=4, eot_id=99)


def test_a_text_that_repeats_takes_few_passes():
    decoder = repeating(max_seq_len=200)
    (plain,), _ = generate(decoder, [(1, 2)], temperature=0.0, max_new_tokens=100)
    assert decoder.statistics == decode.DecodeStatistics(drawn=100, passes=100, draft_tokens=0)
    (text,), _ = generate(decoder, [(1, 2)], temperature=0.0, max_new_tokens=100, draft_tokens=4)
    assert text == plain and len(set(text[-20:])) == 1
    assert decoder.statistics.passes < 30
    assert decoder.statistics.acceptance > 0.7
    report = decode.DecodeStatistics(drawn=100, passes=40, draft_tokens=3)
    assert str(report) == '100 tokens in 40 passes: 2.50 a pass, 50% of the drafts accepted'


def test_ends_of_text_are_the_same_with_drafts():
    config, params = make_model(vocab_size=4, init_std=0.05)
    decoder = Decoder(config, params, vocab_size=4, eot_id=3)
    for seed in range(4):
        sampling = dict(temperature=1.0, max_new_tokens=30, seed=seed)
        plain, _ = generate(decoder, [(1,), (2, 0), (0, 1, 1)], **sampling)
        drafted, _ = generate(decoder, [(1,), (2, 0), (0, 1, 1)], draft_tokens=3, **sampling)
        assert drafted == plain
        assert all(row[-1] == 3 for row in plain)


def test_sampled_tokens_follow_each_other_as_often_as_without_drafts():
    """With other randomness on either side, so that equal draws do not hide a wrong share."""
    decoder = repeating(max_seq_len=1024, position='none')

    def count(seeds, **sampling):
        table = np.zeros((4, 4))
        for seed in seeds:
            sampling |= dict(temperature=3.0, max_new_tokens=1000, seed=seed)
            (text,), _ = generate(decoder, [(1, 2, 1)], **sampling)
            np.add.at(table, (text[:-1], text[1:]), 1)
        return table

    plain = count(range(4))
    drafted = count(range(100, 104), draft_tokens=3)
    assert 0.1 < decoder.statistics.acceptance < 0.9
    # Homogeneity of the tables' rows: what follows a token, given the token.
    both, chi_square = plain + drafted, 0.0
    for table in (plain, drafted):
        expected = both * (table.sum(1) / both.sum(1))[:, None]
        chi_square += ((table - expected) ** 2 / expected).sum()
    assert both.min() > 20
    assert chi_square < 33  # twelve degrees of freedom: exceeded once in 1,000 times
