"""Analyses give the numbers that are known by other means."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from gpt_jax.errors import UserError
from gpt_jax.inspector import zero
from gpt_jax.inspector.analyses.attribution import Attribution
from gpt_jax.inspector.analyses.cost import Cost
from gpt_jax.inspector.analyses.lens import Lens
from gpt_jax.inspector.analyses.residual import Residual
from gpt_jax.inspector.analyses.token_loss import TokenLoss
from gpt_jax.inspector.inspector import Inspector
from gpt_jax.model.cache import make_cache
from gpt_jax.model.config import PositionKind
from gpt_jax.train.flops import train_flops_per_token
from tests.inspector.architectures import SUMS, TOKENS, VARIATIONS, inspect, make_inspector

MODELS = [name for name in VARIATIONS | SUMS if not name.startswith('post')]


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits, -1))


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'post-norm, windows'])
def test_the_last_lens_is_the_model(name):
    inspector, inspection = make_inspector(name), inspect(name)
    lens = Lens.run(inspector, TOKENS, inspection=inspection)
    shares = softmax(inspection.logits.values)
    last = lens.probabilities.sel(stage=-1).values
    np.testing.assert_allclose(last, np.sort(shares)[:, ::-1][:, :5], rtol=1e-4)
    best = lens.choices.sel(stage=-1, choice=0).values
    np.testing.assert_array_equal(best, shares.argmax(-1))
    entropy = -(shares * np.log2(shares)).sum(-1)
    np.testing.assert_allclose(lens.entropy.sel(stage=-1).values, entropy, rtol=1e-4)
    loss = TokenLoss.run(inspector, TOKENS, inspection=inspection)
    np.testing.assert_array_equal(lens.next_rank.sel(stage=-1).values, loss.rank.values)
    np.testing.assert_allclose(
        lens.next_probability.sel(stage=-1).values, loss.probability.values, rtol=1e-4
    )
    assert lens.choices.sizes == {'stage': inspector.config.num_layers + 1, 'position': 8} | {
        'choice': 5
    }


def test_a_lens_is_the_model_without_later_layers():
    inspector = make_inspector('gpt2')
    config = dataclasses.replace(inspector.config, num_layers=1)
    params = inspector.params | {
        'blocks': jax.tree.map(lambda x: x[:1], inspector.params['blocks'])
    }
    shorter = Inspector(config, params, inspector.tokenizer).inspect(TOKENS, points=['logits'])
    lens = Lens.run(inspector, TOKENS, inspection=inspect('gpt2'))
    expected = np.sort(softmax(shorter.logits.values))[:, ::-1][:, :5]
    np.testing.assert_allclose(lens.probabilities.sel(stage=1).values, expected, rtol=1e-4)


def test_losses_are_the_cross_entropy():
    inspector, inspection = make_inspector('gpt2'), inspect('gpt2')
    found = TokenLoss.run(inspector, TOKENS, inspection=inspection)
    logits = inspection.logits.values
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[:-1], np.array(TOKENS[1:]))
    np.testing.assert_allclose(found.loss.values, expected, rtol=1e-5)
    np.testing.assert_allclose(found.bits.values, expected / np.log(2), rtol=1e-5)
    for i, token in enumerate(TOKENS[1:]):
        assert found.rank.values[i] == 1 + (logits[i] > logits[i, token]).sum()
    order = np.argsort(-logits, -1)[:, :10]
    np.testing.assert_array_equal(found.choices.values, order)
    assert found.probabilities.sizes == {'position': len(TOKENS), 'choice': 10}
    assert found.vocabulary[str(order[0, 0])] == inspector.tokenizer.decode([int(order[0, 0])])


@pytest.mark.parametrize('name', MODELS)
def test_parts_add_up_to_the_logit(name):
    inspector, inspection = make_inspector(name), inspect(name)
    logits = inspection.logits.values
    for position, against in ((-1, None), (3, 11)):
        found = Attribution.run(
            inspector, TOKENS, inspection=inspection, position=position, against=against
        )
        assert found.token == logits[position].argmax()
        assert sum(value for _, value in found.parts()) == pytest.approx(found.logit, rel=1e-4)
        assert found.total == pytest.approx(found.logit, rel=1e-4)
        cap = inspector.config.output_soft_cap
        before = cap * np.arctanh(logits[position] / cap) if cap else logits[position]
        expected = before[found.token] - (0 if against is None else before[against])
        assert found.logit == pytest.approx(expected, rel=1e-4)
        if inspector.config.position != PositionKind.LEARNED:
            assert found.position_embedding == 0
        if name == 'differential':
            assert found.sources is None
            continue
        heads = found.sources.values.sum(-1)
        scale = np.abs(found.heads.values).max()
        np.testing.assert_allclose(heads, found.heads.values, rtol=1e-4, atol=1e-5 * scale)
        if position > 0:
            assert not found.sources.values[..., position + 1 :].any()


def test_sources_are_left_out_where_they_do_not_make_the_heads():
    inspector, inspection = make_inspector('gpt2'), inspect('gpt2')
    name = 'blocks.0.attention.value'
    other = dict(inspection.arrays) | {name: 1.5 * inspection.arrays[name]}
    inspection = dataclasses.replace(inspection, arrays=other)
    assert Attribution.run(inspector, TOKENS, inspection=inspection).sources is None


def test_parts_of_the_tokens_that_come():
    inspector, inspection = make_inspector('sandwich, LayerNorm'), inspect('sandwich, LayerNorm')
    attribute = functools.partial(Attribution.run, inspector, TOKENS, inspection=inspection)
    coming = attribute()
    assert coming.next_heads.sizes['position'] == len(TOKENS) - 1
    for position in (0, 4):
        found = attribute(position=position, token=TOKENS[position + 1])
        np.testing.assert_array_equal(coming.next_heads.values[position], found.heads.values)
        np.testing.assert_array_equal(coming.next_mlps.values[position], found.mlps.values)
        by_source = found.sources.values.sum((0, 1))
        np.testing.assert_allclose(coming.next_sources.values[position], by_source, atol=1e-5)


def test_a_part_is_what_ablation_takes_away():
    """Without a final norm, and in the last layer of a parallel block, effects are direct."""
    name = 'parallel, no final norm'
    inspector = make_inspector(name)
    found = Attribution.run(inspector, TOKENS, inspection=inspect(name), token=7)
    last = inspector.config.num_layers - 1
    edits = {
        found.mlps.values[last]: zero('mlp_output', layer=last),
        found.heads.values[last, 2]: zero('attention.heads', layer=last, head=2),
    }
    for part, edit in edits.items():
        after = inspector.run(TOKENS, [edit], points=['logits']).logits.values[-1, 7]
        assert found.logit - after == pytest.approx(part, rel=1e-3)


def test_a_token_may_be_a_text():
    inspector, inspection = make_inspector('gpt2'), inspect('gpt2')  # bytes, of which it knows 70
    attribute = functools.partial(Attribution.run, inspector, TOKENS, inspection=inspection)
    found = attribute(token='A', against='B')
    assert (found.token, found.against) == (ord('A'), ord('B'))
    assert found.rows()[0][1] == "logit of 'A' less that of 'B'"
    for wrong, message in (
        (dict(token='AB'), "token='AB' is 2 tokens"),
        (dict(token='a'), 'token=97 is out of range'),
        (dict(against=70), 'against=70 is out of range'),
        (dict(position=8), 'position=8 is out of range'),
    ):
        with pytest.raises(UserError, match=message):
            attribute(**wrong)


def test_norms_and_cosines_of_the_residual_stream():
    found, inspection = Residual.run(None, TOKENS, inspection=inspect('gpt2')), inspect('gpt2')
    at = dict(layer=1, position=4)
    stream, middle, attention, mlp, after = (
        inspection[name].sel(**at).values
        for name in (
            *('residual_before', 'residual_middle', 'attention_output', 'mlp_output'),
            'residual_after',
        )
    )
    length = np.linalg.norm
    assert found.norms.values[1, 4] == pytest.approx(length(stream))
    assert found.norms.values[2, 4] == pytest.approx(length(after))
    assert found.mlp_norms.sel(**at).values == pytest.approx(length(mlp))
    # The law of cosines.
    for write, before, cosine, result in (
        (attention, stream, found.attention_cosines, middle),
        (mlp, middle, found.mlp_cosines, after),
    ):
        sides = length(write) ** 2 + length(before) ** 2
        crossed = 2 * length(write) * length(before) * cosine.sel(**at).values
        assert length(result) ** 2 == pytest.approx(sides + crossed, rel=1e-4)
    same = dataclasses.replace(inspection, arrays=_with_equal_writes(inspection))
    repeats = Residual.run(None, TOKENS, inspection=same).mlp_repeats
    np.testing.assert_allclose(repeats.values, 1, rtol=1e-5)


def _with_equal_writes(inspection):
    write = inspection.arrays['blocks.0.mlp_output']
    return dict(inspection.arrays) | {'blocks.1.mlp_output': 2 * write}


@pytest.mark.parametrize('name', ['post-norm, windows', 'latent', 'kinds of layers'])
def test_costs_are_those_of_the_rest_of_the_package(name):
    inspector = make_inspector(name)
    config, length = inspector.config, len(TOKENS)
    cost = Cost.run(inspector, TOKENS)
    assert 3 * cost.flops_per_token == pytest.approx(train_flops_per_token(config, length=length))
    norm = sum(leaf.size for leaf in jax.tree.leaves(inspector.params['final_norm']))
    assert cost.output_flops == 2 * (config.vocab_size * config.d_model + norm)
    cache = make_cache(config, rows=1, slots=length)
    arrays = jax.tree.leaves(cache.layers)
    assert cost.cache_bytes.values.sum() == sum(x.size * x.dtype.itemsize for x in arrays)
    if name.startswith('post'):
        windowed, full = cost.score_flops.values[:2]
        assert full / windowed == pytest.approx(length / 3)
