"""The tokens that may be drawn, by the definitions of the filters, and their frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig, finalize_sample
from gpt_jax.inference.sampling import SeenTokens, filter_logits, make_rule, sample

B, V = 4, 40
LOGITS = np.random.default_rng(0).normal(0, 2, (B, V)).astype(np.float32)
SEEN = SeenTokens(
    jnp.asarray(np.random.default_rng(1).random((B, V)) < 0.2),
    jnp.asarray(np.random.default_rng(2).poisson(0.3, (B, V)), jnp.int32),
)
filter_jit = jax.jit(filter_logits)


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def filter_by_definition(
    logits,
    prompt,
    drawn,
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
):
    """One row, in float64: the logits that are left, -inf for those that are not."""
    logits = logits.astype(np.float64)
    if repetition_penalty != 1.0:
        divided, multiplied = logits / repetition_penalty, logits * repetition_penalty
        seen = prompt | (drawn > 0)
        logits = np.where(seen, np.where(logits > 0, divided, multiplied), logits)
    logits = logits - presence_penalty * (drawn > 0) - frequency_penalty * drawn
    logits = logits / temperature
    order = list(np.argsort(-logits))
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        probabilities = softmax(logits[order])
        total, kept = 0.0, 0
        while total < top_p:  # the fewest tokens that reach top_p together
            total += probabilities[kept]
            kept += 1
        order = order[:kept]
    likeliest = logits[order[0]]
    order = [i for i in order if np.exp(logits[i] - likeliest) >= min_p]
    left = np.full(len(logits), -np.inf)
    left[order] = logits[order]
    return left


RULES = {
    'nothing': {},
    'temperature': dict(temperature=0.7),
    'top_k': dict(top_k=5),
    'top_k 1': dict(top_k=1),
    'top_k over the vocabulary': dict(top_k=V + 5),
    'top_p': dict(top_p=0.8),
    'top_p below the likeliest': dict(top_p=0.01),
    'min_p': dict(min_p=0.1),
    'repetition_penalty': dict(repetition_penalty=1.7),
    'repetition_penalty below 1': dict(repetition_penalty=0.6),
    'presence_penalty': dict(presence_penalty=1.5),
    'frequency_penalty': dict(frequency_penalty=-0.8),
    'top_k, top_p': dict(top_k=6, top_p=0.7),
    'top_p, temperature': dict(top_p=0.8, temperature=2.0),
    'min_p, temperature': dict(min_p=0.1, temperature=2.0),
    'all': dict(
        temperature=1.5,
        top_k=20,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.3,
    ),
}


def rows_of_seen():
    """The logits of each row, and the tokens that it has seen."""
    return zip(LOGITS, np.asarray(SEEN.prompt_BV), np.asarray(SEEN.drawn_BV), strict=True)


def nothing_seen(rows, size):
    return SeenTokens(jnp.zeros((rows, size), bool), jnp.zeros((rows, size), jnp.int32))


def rule_of(**changes):
    """The same rule in each of the B rows."""
    return make_rule([SampleConfig(**({'temperature': 1.0} | changes))] * B, vocab_size=V)


@pytest.mark.parametrize('changes', RULES.values(), ids=RULES.keys())
def test_filters_follow_their_definitions(changes):
    actual = np.asarray(filter_jit(LOGITS, SEEN, rule_of(**changes)))
    expected = np.stack([filter_by_definition(*row, **changes) for row in rows_of_seen()])
    np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert np.isfinite(actual).any(-1).all(), 'the likeliest token is left'


def test_a_bias_comes_before_all_filters():
    bias = np.zeros((B, V), np.float32)
    bias[:, 3], bias[1, 5] = 100, -np.inf
    rule = rule_of(top_k=2, repetition_penalty=2.0).replace(bias_BV=bias)
    left = np.asarray(filter_jit(LOGITS, SEEN, rule))
    np.testing.assert_array_equal(
        left, np.asarray(filter_jit(LOGITS + bias, SEEN, rule.replace(bias_BV=None)))
    )
    assert np.isfinite(left[:, 3]).all() and not np.isfinite(left[1, 5])


def test_rules_are_different():
    counts = {
        name: np.isfinite(filter_jit(LOGITS, SEEN, rule_of(**changes))).sum(-1).tolist()
        for name, changes in RULES.items()
    }
    assert counts['nothing'] == counts['top_k over the vocabulary'] == [V] * B
    assert counts['top_k'] == [5] * B
    assert counts['top_p below the likeliest'] == counts['top_k 1'] == [1] * B
    assert all(1 < count < V for name in ('top_p', 'min_p', 'all') for count in counts[name])


def test_what_is_off_excludes_nothing_however_unlikely():
    steep = np.array([[0.0, -30.0, -60.0, -90.0]], np.float32)
    steep, unseen = np.tile(steep, (B, 1)), nothing_seen(B, 4)
    for changes, left in ((dict(top_k=3), 3), (dict(top_k=9), 4), (dict(min_p=1e-20), 2), ({}, 4)):
        assert np.isfinite(filter_jit(steep, unseen, rule_of(**changes))).sum() == B * left, changes


def test_excluded_tokens_stay_excluded():
    logits = np.where(np.arange(V) < 30, LOGITS, -np.inf).astype(np.float32)
    for changes in RULES.values():
        left = np.asarray(filter_jit(logits, SEEN, rule_of(**changes)))
        assert not np.isnan(left).any()
        assert np.isneginf(left[:, 30:]).all()
        assert np.isfinite(left).any(-1).all()


@pytest.mark.parametrize('changes', [{}, dict(top_k=3), dict(repetition_penalty=5.0)], ids=str)
def test_greedy_takes_the_likeliest_whatever_the_key(changes):
    rule = rule_of(temperature=0.0, **changes)
    expected = [filter_by_definition(*row, **changes).argmax() for row in rows_of_seen()]
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), B)
        tokens = jax.jit(sample)(LOGITS, SEEN, keys, rule)
        assert tokens.dtype == jnp.int32
        np.testing.assert_array_equal(tokens, expected)
    if 'repetition_penalty' in changes:
        assert expected != LOGITS.argmax(-1).tolist()


@pytest.mark.parametrize('changes', [{}, dict(temperature=2.0, top_k=4, min_p=0.1)], ids=str)
def test_tokens_come_as_often_as_they_are_likely(changes):
    draws = 20_000
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.0], np.float32)
    unseen = nothing_seen(draws, 6)
    keys = jax.random.split(jax.random.key(0), draws)
    config = SampleConfig(**({'temperature': 1.0} | changes))
    rule = make_rule([config] * draws, vocab_size=6)
    tokens = jax.jit(sample)(np.tile(logits, (draws, 1)), unseen, keys, rule)
    counts = np.bincount(tokens, minlength=6)
    none = np.zeros(6, int)
    expected = draws * softmax(filter_by_definition(logits, none > 0, none, **changes))
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 25  # five degrees of freedom: exceeded once in 7,000 times


def test_a_row_depends_on_itself_only():
    rule = rule_of(top_k=10, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
    keys = jax.random.split(jax.random.key(7), B)
    draw = jax.jit(sample)
    together = draw(LOGITS, SEEN, keys, rule)
    alone = [
        int(draw(*jax.tree.map(lambda x: x[i : i + 1], (LOGITS, SEEN, keys, rule)))[0])  # noqa: B023
        for i in range(B)
    ]
    assert together.tolist() == alone
    again = draw(LOGITS, SEEN, jax.random.split(jax.random.key(8), B), rule)
    assert again.tolist() != alone


def test_rows_have_rules_of_their_own():
    """Bit for bit those of a batch in which all rows have them, whatever the others turn on."""
    own = [
        dict(temperature=0.0, repetition_penalty=3.0),
        dict(top_k=3, repetition_penalty=0.5),
        dict(temperature=3.0, frequency_penalty=1.0),
        dict(temperature=0.7, top_p=0.6, min_p=0.1),
    ]
    configs = [SampleConfig(**({'temperature': 1.0} | changes)) for changes in own]
    mixed = make_rule(configs, vocab_size=V)
    assert (mixed.draws, mixed.truncates, mixed.penalises) == (True, True, True)
    keys = jax.random.split(jax.random.key(0), B)
    tokens = jax.jit(sample)(LOGITS, SEEN, keys, mixed)
    filtered = filter_jit(LOGITS, SEEN, mixed)
    for row, changes in enumerate(own):
        rule = rule_of(**changes)
        assert tokens[row] == jax.jit(sample)(LOGITS, SEEN, keys, rule)[row], changes
        if rule.draws:
            np.testing.assert_array_equal(filtered[row], filter_jit(LOGITS, SEEN, rule)[row])


WRONG = dict(
    every=-1,
    max_new_tokens=0,
    num_samples=0,
    temperature=-0.1,
    top_k=-1,
    top_p=0.0,
    min_p=1.0,
    repetition_penalty=0.0,
    presence_penalty=101.0,
    frequency_penalty=-101.0,
    stop=('a', ''),
    chunk=0,
    draft_tokens=33,
)


@pytest.mark.parametrize('name', WRONG)
def test_impossible_values_are_named(name):
    finalize_sample(SampleConfig())
    with pytest.raises(UserError, match=rf'^config\.sample\.{name}='):
        finalize_sample(SampleConfig(**{name: WRONG[name]}))
