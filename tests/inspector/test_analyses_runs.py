"""Analyses that run the model many times give what as many single runs give."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.inspector import mean, replace, zero
from gpt_jax.inspector.analyses import sweep
from gpt_jax.inspector.analyses.ablation import Ablation, _ablate, _replacements
from gpt_jax.inspector.analyses.base import QUIET
from gpt_jax.inspector.analyses.heads import HeadKinds
from gpt_jax.inspector.analyses.neurons import TopTokens
from gpt_jax.inspector.analyses.patching import Patching, choose_tokens
from gpt_jax.inspector.forward import Start
from tests.inspector.architectures import TOKENS, make_inspector

TEXT, OTHER = 'Once upon', 'Twice  in'
HEADS, ATTENTION, MLP = 'attention.heads', 'attention_output', 'mlp_output'


@pytest.fixture(scope='module')
def gpt():
    return GPT(
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        d_model=32,
        d_ff=24,
        max_seq_len=16,
        position='rope',
        norm='rmsnorm',
        init={'std': 0.2},
    )


@pytest.fixture(scope='module')
def whole(gpt):
    return gpt.inspect(TEXT)


def measure(logits, tokens, token):
    """Loss per position, logit and probability of the next token."""
    log = np.asarray(jax.nn.log_softmax(logits))
    return -log[np.arange(len(tokens) - 1), tokens[1:]], logits[-1, token], np.exp(log[-1, token])


@pytest.mark.parametrize('edit', [zero, mean])
def test_ablation_equals_single_runs(gpt, whole, edit):
    result = Ablation.run(gpt.inspector, TEXT, inspection=whole, how=edit.__name__)
    base = measure(whole.logits.values, whole.tokens, result.token)
    assert result.loss == pytest.approx(base[0].mean(), abs=1e-5)
    parts = [('head', (i, h), edit(HEADS, layer=i, head=h)) for i in (0, 1) for h in (0, 3)]
    parts += [('attention', (1,), edit(ATTENTION, layer=1)), ('mlp', (0,), edit(MLP, layer=0))]
    for kind, at, change in parts:
        after = gpt.run(TEXT, [change], points=['logits']).logits.values
        loss, logit, probability = measure(after, whole.tokens, result.token)
        found = {
            each: getattr(result, f'{kind}_{each}').values[at]
            for each in ('loss', 'loss_by_position', 'logit', 'probability')
        }
        assert np.abs(loss - base[0]).max() > 1e-3
        np.testing.assert_allclose(found['loss_by_position'], loss - base[0], atol=1e-5)
        assert found['loss'] == pytest.approx((loss - base[0]).mean(), abs=1e-5)
        assert found['logit'] == pytest.approx(logit - base[1], abs=1e-5)
        assert found['probability'] == pytest.approx(probability - base[2], abs=1e-5)


def test_patching_equals_single_runs(gpt, whole):
    other = gpt.inspect(OTHER)
    result = Patching.run(gpt.inspector, TEXT, against=OTHER, inspection=whole, branches=True)
    pair = [result.token, result.other_token]
    difference = lambda seen: np.subtract(*seen.logits.values[-1, pair])  # noqa: E731
    start, end = difference(whole), difference(other)
    assert (result.difference, result.other_difference) == pytest.approx((start, end), abs=1e-5)
    for field, point, where in (
        ('residual', 'residual_before', dict(layer=1, position=6)),
        ('attention', ATTENTION, dict(layer=0, position=8)),
        ('mlp', MLP, dict(layer=1, position=-1)),
        ('heads', HEADS, dict(layer=1, head=2)),
    ):
        after = gpt.run(TEXT, [replace(point, other, **where)])
        moved = (difference(after) - start) / (end - start)
        assert abs(moved) > 1e-3
        assert getattr(result, field).sel(**where).values == pytest.approx(moved, abs=1e-4)


def test_patching_everything_gives_the_other_prompt(gpt):
    """The prompts differ in one token only, which is therefore everything."""
    mine, other = [3, 1, 4, 1, 5], [3, 9, 4, 1, 5]
    result = Patching.run(gpt.inspector, mine, against=other)
    np.testing.assert_allclose(result.residual.values[0], [0, 1, 0, 0, 0], atol=1e-5)
    single = Patching.run(gpt.inspector, [3], against=[9])
    np.testing.assert_allclose(single.residual.values, 1, atol=1e-5)


def test_texts_that_cannot_be_compared(gpt):
    message = r"have 2 and 3: 'a' 'b' against 'a' 'b' '\\n'$"
    with pytest.raises(UserError, match=message):
        Patching.run(gpt.inspector, 'ab', against='ab\n')
    with pytest.raises(UserError, match='the same; give another'):
        Patching.run(gpt.inspector, 'ab', against='ab')


def test_prompts_that_predict_the_same_token(gpt):
    """The second token is that which the other prompt favours most."""
    mine = np.array([0.0, 5.0, 1.0, 1.0])
    assert choose_tokens(mine, np.array([0.0, 5.0, 2.0, 1.0])) == (1, 2)
    assert choose_tokens(mine, np.array([9.0, 5.0, 2.0, 1.0])) == (1, 0)


def test_chunks_cover_every_candidate_and_stay_within_memory():
    grid = {'a': (3, 4), 'b': (3,), 'c': (3, 2, 2)}
    wanted = np.arange(27) != 1
    layers = np.concatenate([np.arange(12) // 4, np.arange(3), np.arange(12) // 4])
    calls, begun = [], {}

    def run(layer, indices):
        calls.append(len(indices))
        begun.update(dict.fromkeys(indices.tolist(), layer))
        return {'double': 2 * indices[:, None]}

    found = sweep.sweep(
        run,
        grid,
        wanted=wanted,
        bytes_each=sweep.BUDGET // 5,
        progress=QUIET,
        description='test',
    )
    np.testing.assert_array_equal(found['double'][:, 0], 2 * np.arange(27) * wanted)
    assert calls == [5] * 6
    assert sorted(begun) == np.flatnonzero(wanted).tolist()
    late = [layers[index] - layer for index, layer in begun.items()]  # layers run in vain
    assert min(late) == 0 and max(late) == 1
    assert sweep.chunk_size(1000, 1) == 63
    assert sweep.chunk_size(5, 1) == 5
    assert sweep.chunk_size(5, 2 * sweep.BUDGET) == 1


def test_scores_of_heads_by_hand(gpt, whole):
    kinds = HeadKinds.run(gpt.inspector, 'abcab', seed=3)
    weights = gpt.inspect('abcab')['attention.weights'].values
    expected = {
        'previous': np.mean([weights[..., i, i - 1] for i in range(1, 5)], 0),
        'first': weights[..., 1:, 0].mean(-1),
        'duplicate': (weights[..., 3, 0] + weights[..., 4, 1]) / 2,
        'induction': (weights[..., 3, 1] + weights[..., 4, 2]) / 2,
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(getattr(kinds, kind).values, values, atol=1e-6)
    above = kinds.above('previous', 0.2)
    values = [kinds.previous.values[at] for at in above]
    assert values == sorted(values, reverse=True)
    assert len(values) == (kinds.previous.values > 0.2).sum()


def test_top_tokens_are_those_of_the_whole_corpus(gpt, tmp_path):
    random = np.random.default_rng(0)
    corpus = ''.join(random.choice([*'abcdefgh \n'], 16 * 11 + 5))
    (tmp_path / 'corpus.txt').write_text(corpus)
    result = TopTokens.run(
        gpt.inspector,
        TEXT,
        corpus=tmp_path / 'corpus.txt',
        layer=1,
        neurons=[5, -1],
        examples=80,
    )
    assert result.neurons == ((1, 5), (1, 23))
    assert result.corpus_tokens == len(corpus)
    hidden = np.zeros((len(corpus), 2))
    for start in range(0, len(corpus), 16):
        part = gpt.inspect(corpus[start : start + 16], points=['mlp.hidden'])
        hidden[start : start + 16] = part['blocks.1.mlp.hidden'].values[:, [5, 23]]
    hidden[::16] = -np.inf  # the first position of each window
    for values, examples in zip(hidden.T, result.examples, strict=True):
        best = np.argsort(-values, kind='stable')[:80]
        np.testing.assert_allclose([each['value'] for each in examples], values[best], atol=1e-5)
        for at, each in zip(best, examples, strict=True):
            begin = max(at // 16 * 16, at - 8)
            assert ''.join(each['texts']) == corpus[begin : min(at + 4, (at // 16 + 1) * 16)]
            assert each['texts'][each['at']] == corpus[at]
            assert each['values'][each['at']] == each['value']
    json.dumps(result.data()['examples'])


def test_the_most_active_neurons_of_a_text(gpt, whole):
    result = TopTokens.run(gpt.inspector, TEXT, inspection=whole, count=3)
    hidden = whole['mlp.hidden'].values[:, 1:].max(1)
    best = np.sort(hidden.ravel())[::-1][:3]
    found = sorted((hidden[at] for at in result.neurons), reverse=True)
    np.testing.assert_array_equal(found, best)
    assert result.activations.values.shape == (3, len(TEXT))
    with pytest.raises(UserError, match='give layer'):
        TopTokens.run(gpt.inspector, TEXT, inspection=whole, neurons=[3])
    with pytest.raises(UserError, match='neuron=24 is out of range'):
        TopTokens.run(gpt.inspector, TEXT, inspection=whole, layer=0, neurons=[24])


def test_the_program_of_ablation_needs_no_more_than_estimated(gpt, whole):
    """XLA's count of the temporary memory of a chunk."""
    config = freeze(gpt.config.model)
    values = _replacements(whole, 'zero')
    tokens = jnp.asarray(whole.tokens)
    start = Start(0, whole['blocks.0.residual_before'].values)
    program = _ablate.lower(config, gpt.params, tokens, 0, values, start, jnp.arange(8)).compile()
    each = sweep.activation_bytes(config, len(tokens))
    assert program.memory_analysis().temp_size_in_bytes < 8 * each


def test_a_layer_without_an_mlp_has_no_part_in_the_mlps():
    """Its row is left out, and its numbers are 0; those of the other layers are as ever."""
    inspector = make_inspector('attention only, then MLP')
    ablation = Ablation.run(inspector, TOKENS)
    patching = Patching.run(inspector, TOKENS, against=(7, *TOKENS[1:]), branches=True)
    assert not any(name == 'mlp 0' for name, *_ in ablation.rows())
    for array in (ablation.mlp_loss, patching.mlp):
        values = array.values.reshape(4, -1)
        assert not values[::2].any()
        assert values[1::2].any(1).all()
    alone = make_inspector('attention only')
    assert not any(name.startswith('mlp') for name, *_ in Ablation.run(alone, TOKENS).rows())
    assert Patching.run(alone, TOKENS, against=(7, *TOKENS[1:]), branches=True).mlp is None
