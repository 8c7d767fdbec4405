"""The Triton softmax kernel, interpreted on the CPU, against the reference; and its choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType

from gpt_jax.config import LossKernel
from gpt_jax.errors import UserError
from gpt_jax.kernels import loss_triton
from gpt_jax.kernels.loss import LOSS_KERNELS, choose_loss_kernel
from gpt_jax.kernels.loss_softmax import LossOptions, softmax_xla
from gpt_jax.kernels.loss_triton import softmax_triton
from gpt_jax.train.loss import cross_entropy

M = 8
WEIGHTS = jnp.asarray([1, 0, 1, 0.5, 2, 1, 0, 1], jnp.float32)
interpreted = functools.partial(softmax_triton, interpret=True)


def inputs(rows, vocab, dtype=jnp.float32):
    """Logits that a soft cap bends, and targets of which every third is the most likely token."""
    draw = np.random.default_rng(rows)
    raw_MV = jnp.asarray(3 * draw.standard_normal((M, rows)), dtype)
    best_M = np.asarray(raw_MV[:, :vocab]).argmax(-1)
    targets_M = np.where(np.arange(M) % 3 == 0, best_M, draw.integers(0, vocab, M))
    return raw_MV, jnp.asarray(targets_M, jnp.int32), WEIGHTS


def assert_close(actual, expected, *, tolerance=2e-6):
    """Relative to the largest entry."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


VOCABULARIES = {
    'no padding rows': (256, 256),
    'padding rows': (256, 200),
    'ragged last block': (384, 300),
    'no whole block': (128, 70),
    'a block of padding': (512, 130),
}
OPTIONS = {
    'plain': {},
    'soft cap': dict(soft_cap=2.0),
    'z-loss': dict(z_loss=0.1),
    'both': dict(soft_cap=2.0, z_loss=0.1),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(loss_triton, 'BLOCK', 128)


@pytest.mark.parametrize('changes', OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize('rows, vocab', VOCABULARIES.values(), ids=VOCABULARIES.keys())
def test_losses_and_gradients_equal_the_reference(rows, vocab, changes):
    options, arrays = LossOptions(vocab_size=vocab, **changes), inputs(rows, vocab)
    losses, dlogits_MV = jax.jit(functools.partial(interpreted, options))(*arrays)
    expected, expected_dlogits_MV = jax.jit(functools.partial(softmax_xla, options))(*arrays)
    assert_close(losses, expected)
    assert 0 < losses.correct_M.sum() < M
    assert_close(dlogits_MV, expected_dlogits_MV)
    assert (dlogits_MV[:, vocab:] == 0).all()
    assert (dlogits_MV[WEIGHTS == 0] == 0).all()


def test_half_precision_is_as_close_as_its_logits():
    """The same bfloat16 logits: losses agree in float32, gradients to a bfloat16's rounding."""
    options, arrays = LossOptions(vocab_size=300), inputs(384, 300, jnp.bfloat16)
    losses, dlogits_MV = jax.jit(functools.partial(interpreted, options))(*arrays)
    reference = (arrays[0].astype(jnp.float32), *arrays[1:])
    expected, expected_dlogits_MV = jax.jit(functools.partial(softmax_xla, options))(*reference)
    assert dlogits_MV.dtype == jnp.bfloat16
    assert_close(losses, expected)
    assert_close(dlogits_MV, expected_dlogits_MV, tolerance=2**-8)


def test_logits_that_are_not_finite_are_not_hidden():
    raw_MV, *rest = inputs(128, 70)
    losses, _ = interpreted(LossOptions(vocab_size=70), raw_MV.at[0, 3].set(jnp.nan), *rest)
    assert jnp.isnan(losses.nll_M[0]) and jnp.isfinite(losses.nll_M[1:]).all()


def whole_loss(kernel, hidden_BLD, table_VD, **options):
    """Loss, sums and gradients of `cross_entropy` in two chunks."""
    B, L, _ = hidden_BLD.shape
    draw = np.random.default_rng(1)
    targets_BL = jnp.asarray(draw.integers(0, 200, (B, L)), jnp.int32)
    weights_BL = jnp.asarray(draw.random((B, L)) < 0.6, jnp.float32)
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    chunk_bytes = 4 * B * L * table_VD.shape[0] // devices // 2  # two chunks on each device
    options = LossOptions(vocab_size=200, kernel=kernel, chunk_bytes=chunk_bytes, **options)

    def loss(hidden_BLD, table_VD):
        return cross_entropy(hidden_BLD, table_VD, targets_BL, weights_BL, options)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden_BLD, table_VD)


@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 5e-6), (jnp.bfloat16, 0.01)])
@pytest.mark.parametrize('devices', [1, 4])
def test_the_whole_loss_equals_the_reference(dtype, tolerance, devices, monkeypatch):
    """With bfloat16 the logits are rounded to it: 0.4 % each, far less in the sums."""
    kernel = LOSS_KERNELS[LossKernel.TRITON]._replace(softmax=interpreted)
    monkeypatch.setitem(LOSS_KERNELS, LossKernel.TRITON, kernel)
    shapes = []
    call_kernel = loss_triton._call_kernel

    def spy(options, interpret, raw_MV, *rest):
        shapes.append((raw_MV.shape, raw_MV.dtype))
        return call_kernel(options, interpret, raw_MV, *rest)

    monkeypatch.setattr(loss_triton, '_call_kernel', spy)
    draw = np.random.default_rng(0).standard_normal
    hidden_BLD, table_VD = jnp.asarray(draw((4, 6, 8)), dtype), jnp.asarray(draw((256, 8)), 'f4')
    options = dict(soft_cap=5.0, z_loss=0.01)
    expected = whole_loss(LossKernel.XLA, hidden_BLD, table_VD, **options)
    mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), nn.logical_axis_rules((('batch', 'data'),)):
        actual = whole_loss(LossKernel.TRITON, hidden_BLD, table_VD, **options)
    assert_close(actual, expected, tolerance=tolerance)
    assert set(shapes) == {((4 * 6 // 2 // devices, 256), jnp.dtype(dtype))}


def test_auto_takes_the_kernel_where_it_runs():
    resolve = functools.partial(choose_loss_kernel, LossKernel.AUTO)
    assert resolve(backend='gpu') == LossKernel.TRITON
    assert resolve(backend='tpu') == resolve(backend='cpu') == LossKernel.XLA
    assert resolve(backend='gpu', vocab_parts=2) == LossKernel.XLA
    assert choose_loss_kernel(LossKernel.XLA, backend='gpu') == LossKernel.XLA


@pytest.mark.parametrize(
    'where, reason',
    [
        (dict(backend='tpu'), 'the backend is tpu'),
        (dict(backend='gpu', vocab_parts=2), 'the vocabulary is split over 2 devices'),
    ],
)
def test_asking_for_a_kernel_that_cannot_run_is_an_error(where, reason):
    with pytest.raises(UserError) as error:
        choose_loss_kernel(LossKernel.TRITON, **where)
    assert 'config.train.loss_kernel=triton' in str(error.value)
    assert reason in str(error.value)
    assert '\n' not in str(error.value)


def test_every_kernel_is_listed():
    assert set(LOSS_KERNELS) == set(LossKernel) - {LossKernel.AUTO}
