"""The chunked cross entropy against the plain one, which holds all logits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.train.loss import LossOptions, cross_entropy

B, L, D, V, PADDED = 2, 6, 8, 70, 128
LOGITS_BYTES = 4 * B * L * PADDED

RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.standard_normal((B, L, D)), jnp.float32)
TABLE = jnp.asarray(RNG.standard_normal((PADDED, D)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, V, (B, L)), jnp.int32)
MASK = jnp.asarray(RNG.random((B, L)) < 0.6, jnp.float32)


def plain_loss(hidden_BLD, table_VD, targets_BL, weights_BL, options):
    """The same from `log_softmax` over the real rows of the table, in float32."""
    table = table_VD[: options.vocab_size].astype(hidden_BLD.dtype).astype(jnp.float32)
    logits = jnp.einsum('BLD,VD->BLV', hidden_BLD.astype(jnp.float32), table)
    if options.soft_cap:
        logits = options.soft_cap * jnp.tanh(logits / options.soft_cap)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets_BL[..., None], -1)[..., 0]
    log_z = jax.scipy.special.logsumexp(logits, axis=-1)
    cross_entropy = -jnp.sum(log_p * weights_BL)
    correct = jnp.sum((logits.argmax(-1) == targets_BL) * weights_BL)
    return cross_entropy + options.z_loss * jnp.sum(log_z**2 * weights_BL), (cross_entropy, correct)


def value_and_gradients(loss, options, hidden=HIDDEN, weights=MASK):
    """Loss, what it reports, and the gradients of 0.3 times the loss."""

    def scaled(hidden_BLD, table_VD):
        value, sums = loss(hidden_BLD, table_VD, TARGETS, jnp.asarray(weights), options)
        return 0.3 * value, (value, sums)

    run = jax.jit(jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True))
    (_, (value, sums)), gradients = run(jnp.asarray(hidden), TABLE)
    return value, sums, gradients


def assert_close(actual, expected, *, tolerance=1e-5):
    """Relative to the largest entry."""
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(
        np.asarray(actual, np.float32), expected, rtol=0, atol=tolerance * scale
    )


OPTIONS = {
    'plain': {},
    'soft cap': dict(soft_cap=2.0),
    'z-loss': dict(z_loss=0.1),
    'both': dict(soft_cap=2.0, z_loss=0.1),
    'no padding rows': dict(vocab_size=PADDED),
}


@pytest.mark.parametrize('chunks', [1, 2, L])
@pytest.mark.parametrize('changes', OPTIONS.values(), ids=OPTIONS.keys())
def test_value_and_gradients_equal_the_plain_loss(changes, chunks):
    chunk_bytes = LOGITS_BYTES // chunks
    options = LossOptions(**({'vocab_size': V, 'chunk_bytes': chunk_bytes} | changes))
    value, sums, gradients = value_and_gradients(cross_entropy, options)
    expected, (expected_ce, correct), expected_gradients = value_and_gradients(plain_loss, options)
    assert_close(value, expected)
    assert_close(sums.cross_entropy, expected_ce)
    assert float(sums.correct) == float(correct)
    assert float(sums.weight) == MASK.sum()
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert actual.dtype == jnp.float32
        assert_close(actual, wanted)
    assert (gradients[1][options.vocab_size :] == 0).all()


@pytest.mark.parametrize('chunks', [1, 3])
def test_without_differentiation_the_loss_is_the_same(chunks):
    options = LossOptions(
        vocab_size=V, soft_cap=2.0, z_loss=0.1, chunk_bytes=LOGITS_BYTES // chunks
    )
    forward = jax.jit(functools.partial(cross_entropy, options=options))
    value, sums = forward(HIDDEN, TABLE, TARGETS, MASK)
    expected, expected_sums, _ = value_and_gradients(cross_entropy, options)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), sums, expected_sums)


def test_correct_counts_the_most_likely_targets():
    best_BL = (HIDDEN @ TABLE[:V].T).argmax(-1)
    hits_BL = (np.arange(B * L) % 3 == 0).reshape(B, L)
    targets_BL = np.where(hits_BL, best_BL, (best_BL + 1) % V).astype(np.int32)
    _, sums = cross_entropy(HIDDEN, TABLE, jnp.asarray(targets_BL), MASK, LossOptions(vocab_size=V))
    assert float(sums.correct) == (hits_BL * MASK).sum() > 0


def test_weights_need_not_be_0_or_1():
    weights = np.linspace(0, 2, B * L, dtype=np.float32).reshape(B, L)
    options = LossOptions(vocab_size=V, z_loss=0.1, chunk_bytes=LOGITS_BYTES // 2)
    value, _, gradients = value_and_gradients(cross_entropy, options, weights=weights)
    expected, _, expected_gradients = value_and_gradients(plain_loss, options, weights=weights)
    assert_close(value, expected)
    jax.tree.map(assert_close, gradients, expected_gradients)


@pytest.mark.parametrize('chunks', [1, 2])
def test_half_precision(chunks):
    hidden = jnp.asarray(HIDDEN, jnp.bfloat16)
    options = LossOptions(vocab_size=V, chunk_bytes=LOGITS_BYTES // chunks)
    value, _, gradients = value_and_gradients(cross_entropy, options, hidden=hidden)
    expected, _, expected_gradients = value_and_gradients(plain_loss, options, hidden=hidden)
    assert value.dtype == jnp.float32
    assert_close(value, expected)  # products of bfloat16 are added in float32
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(actual, np.asarray(wanted, np.float32), tolerance=0.02)


def test_without_a_token_the_loss_and_the_gradients_are_zero():
    options = LossOptions(vocab_size=V, soft_cap=2.0, z_loss=0.1, chunk_bytes=LOGITS_BYTES // 2)
    nothing = np.zeros((B, L), np.float32)
    value, sums, gradients = value_and_gradients(cross_entropy, options, weights=nothing)
    for leaf in jax.tree.leaves((value, sums, gradients)):
        assert (np.asarray(leaf) == 0).all()


def test_large_logits_stay_finite():
    options = LossOptions(vocab_size=V)
    value, _, gradients = value_and_gradients(cross_entropy, options, hidden=1e4 * HIDDEN)
    expected, _, _ = value_and_gradients(plain_loss, options, hidden=1e4 * HIDDEN)
    assert_close(value, expected)
    assert all(np.isfinite(leaf).all() for leaf in gradients)


def sub_jaxprs(jaxpr):
    """The jaxpr and all those inside it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr')
        ):
            inner = getattr(parameter, 'jaxpr', parameter)
            if hasattr(inner, 'eqns'):
                yield from sub_jaxprs(inner)


def sizes_and_scans(function, *arguments):
    """Elements of every array that a function computes, and the lengths of its loops."""
    equations = [
        equation
        for jaxpr in sub_jaxprs(jax.make_jaxpr(function)(*arguments).jaxpr)
        for equation in jaxpr.eqns
    ]
    sizes = [math.prod(out.aval.shape) for equation in equations for out in equation.outvars]
    scans = [
        equation.params['length'] for equation in equations if equation.primitive.name == 'scan'
    ]
    return sizes, scans


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('length, fits, chunks', [(24, 24, 1), (24, 12, 2), (24, 5, 6), (7, 4, 7)])
def test_the_full_logits_never_exist(length, fits, chunks, training):
    """`fits`: tokens of a row whose logits fit; a chunk is a whole fraction of the row."""
    hidden_BLD = jnp.zeros((B, length, D))
    options = LossOptions(vocab_size=V, chunk_bytes=4 * B * fits * PADDED)

    def loss(hidden_BLD, table_VD):
        targets_BL = jnp.zeros((B, length), jnp.int32)
        return cross_entropy(hidden_BLD, table_VD, targets_BL, jnp.ones((B, length)), options)[0]

    function = jax.grad(loss, argnums=(0, 1)) if training else loss
    sizes, scans = sizes_and_scans(function, hidden_BLD, jnp.zeros((PADDED, D)))
    assert max(sizes) <= PADDED * max(B * length // chunks, D)
    assert scans == ([chunks] if chunks > 1 else [])
    assert (max(sizes) < B * length * PADDED) == (chunks > 1)
