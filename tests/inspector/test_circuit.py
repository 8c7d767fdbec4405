"""Analyses find the heads of a network whose heads were set by hand."""

import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses.ablation import Ablation
from gpt_jax.inspector.analyses.heads import HeadKinds, random_repeats
from gpt_jax.inspector.analyses.patching import Patching
from tests.inspector.circuit import INDUCTION, PREVIOUS, TOKENS, make_circuit

LENGTH = 20


@pytest.fixture(scope='module')
def circuit():
    return make_circuit()


@pytest.fixture(scope='module')
def text(circuit):
    """Random tokens, none twice, and the same once more."""
    return random_repeats(circuit, seed=1, count=1, length=LENGTH)[0].tolist()


def test_the_detectors_find_exactly_the_heads(circuit, text):
    kinds = HeadKinds.run(circuit, text)
    assert kinds.above('induction', 0.9) == [INDUCTION]
    assert kinds.above('induction_random', 0.9) == [INDUCTION]
    assert kinds.above('previous', 0.9) == [PREVIOUS]
    assert kinds.above('duplicate', 0.9) == kinds.above('first', 0.9) == []
    assert kinds.repeats == LENGTH
    assert kinds.loss_repeated < 0.01 < 3 < kinds.loss_random
    for kind in ('induction', 'induction_random'):  # and no other looks there
        others = np.delete(getattr(kinds, kind).values.ravel(), 3)
        assert others.max() < 0.1


def test_without_the_induction_head_nothing_is_copied(circuit, text):
    ablation = Ablation.run(circuit, text)
    repeated = ablation.head_loss_by_position.values[..., LENGTH:].mean(-1)
    assert repeated[INDUCTION] == pytest.approx(np.log(TOKENS), abs=0.01)
    assert repeated[PREVIOUS] > 3
    assert repeated[0, 1] == repeated[1, 0] == 0
    assert not ablation.mlp_loss.values.any()
    assert ablation.token == text[LENGTH]
    assert ablation.probability > 0.99
    assert ablation.head_probability.values[INDUCTION] < -0.9
    assert {row[0] for row in ablation.rows()[2:6]} >= {'head 0.0', 'head 1.1'}


def test_patching_finds_what_the_copy_reads(circuit, text):
    """The prompts differ in the token that is to be copied."""
    text = text[: LENGTH + 1]
    other = [*text]
    other[1] = next(each for each in range(TOKENS) if each not in text)
    patching = Patching.run(circuit, text, against=other, branches=True)
    assert (patching.token, patching.other_token) == (text[1], other[1])
    residual = np.zeros((2, LENGTH + 1))
    residual[:, 1] = 1
    np.testing.assert_allclose(patching.residual.values, residual, atol=1e-4)
    heads = np.zeros((2, 2))
    heads[INDUCTION] = 1
    np.testing.assert_allclose(patching.heads.values, heads, atol=1e-4)
    attention = np.zeros((2, LENGTH + 1))
    attention[1, -1] = 1
    np.testing.assert_allclose(patching.attention.values, attention, atol=1e-4)
    assert not patching.mlp.values.any()


def test_an_unknown_kind_is_one_line(circuit, text):
    with pytest.raises(UserError, match="kind='copy' must be one of previous, duplicate"):
        HeadKinds.run(circuit, text).above('copy', 0.5)
