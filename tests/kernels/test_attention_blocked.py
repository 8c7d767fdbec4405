"""The CPU's score kernel: equal to the reference, with less to compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.kernels import attention_blocked
from gpt_jax.kernels.attention import choose_kernel, find_kernel
from gpt_jax.kernels.attention_blocked import attend_blocked
from gpt_jax.kernels.scores import AttentionMask, ScoreOptions
from gpt_jax.model.attention import attend
from gpt_jax.model.config import AttentionKernel, ModelConfig, finalize_model

B, H, K = 2, 4, 8
SLOPES = tuple(0.5 ** np.arange(H))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention_blocked, 'LEAST_BLOCK', 4)


def value_and_gradients(
    kernel, *, length, kv_heads=H, dropout=0.0, slopes=None, dtype=jnp.float32, **options
):
    """The output and the gradients of a weighted sum of it."""
    draw = np.random.default_rng(0).standard_normal
    arrays = [
        jnp.asarray(2 * draw((B, length, heads, K)), dtype) for heads in (H, kv_heads, kv_heads)
    ]
    weights_BLHK = jnp.asarray(draw((B, length, H, K)), jnp.float32)

    def weighted(q, k, v):
        scoring = ScoreOptions(
            dropout_rate=dropout,
            dropout_key=jax.random.key(5) if dropout else None,
            slopes_H=None if slopes is None else jnp.asarray(slopes, jnp.float32),
            **options,
        )
        out = kernel(q, k, v, scoring)
        return jnp.sum(out * weights_BLHK), out

    run = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(*arrays)
    return out, *gradients


CASES = {
    'four blocks': dict(length=32),
    'a short last block': dict(length=30),
    'gqa, dropout': dict(length=32, kv_heads=2, dropout=0.3),
    'window of a block and one': dict(length=32, window=9, dropout=0.3),
    'window of one': dict(length=16, window=1),
    'all': dict(length=29, kv_heads=1, window=11, soft_cap=2.0, slopes=SLOPES, dropout=0.3),
    'too short for two blocks': dict(length=7, dropout=0.3),
}


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_values_and_gradients_equal_the_reference(case):
    pairs = zip(
        value_and_gradients(attend_blocked, **case),
        value_and_gradients(attend, **case),
        strict=True,
    )
    for actual, expected in pairs:
        # With one key the weights are 1, and nothing reaches the queries and the keys.
        scale = float(jnp.abs(expected).max()) or 1.0
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


def test_in_bfloat16_both_are_as_near_to_float32():
    case = dict(length=32, kv_heads=2, window=9, dropout=0.3)
    exact = value_and_gradients(attend, **case)

    def error(kernel):
        low = value_and_gradients(kernel, dtype=jnp.bfloat16, **case)
        assert {array.dtype for array in low} == {jnp.dtype(jnp.bfloat16)}
        return [float(jnp.linalg.norm(a - b)) for a, b in zip(low, exact, strict=True)]

    for ours, reference in zip(error(attend_blocked), error(attend), strict=True):
        assert ours < 1.2 * reference


def test_other_masks_are_left_to_the_plain_attention():
    find = functools.partial(find_kernel, 'blocked', keys=16)
    assert find(ScoreOptions(), queries=16) is attend_blocked
    draw = np.random.default_rng(0).standard_normal
    q, k, v = (jnp.asarray(draw((B, 16, H, K)), jnp.float32) for _ in range(3))
    segments = jnp.asarray([[0] * 9 + [1] * 7, [0] * 3 + [1] * 13])
    for mask, queries in (
        (AttentionMask(segment_ids_BS=segments), 16),
        (AttentionMask(first_query_slot_B=jnp.asarray([0, 0])), 16),
        (AttentionMask(first_query_slot_B=jnp.asarray([11, 3])), 5),
    ):
        assert find(ScoreOptions(mask=mask), queries=queries) is None
        with pytest.raises(ValueError, match='blocked attention takes no segments'):
            attend_blocked(q[:, :queries], k, v, ScoreOptions(mask=mask))


@pytest.mark.parametrize(('window', 'share'), [(0, 5 / 8), (8, (8 + 3 * 15) / 128)])
def test_what_is_masked_is_mostly_left_out(window, share):
    """The multiplications of the two products, as the compiler counts them."""
    shape = jax.ShapeDtypeStruct((1, 32, 1, 64), jnp.float32)

    def flops(kernel):
        attend = functools.partial(kernel, options=ScoreOptions(window=window))
        text = jax.jit(attend).lower(shape, shape, shape).as_text()
        return _products(text)

    assert flops(attend_blocked) / flops(attend) == pytest.approx(share, rel=0.01)


def _products(text: str) -> int:
    """Multiply-adds of the products of a StableHLO program: output size times inner size."""
    total = 0
    for line in text.splitlines():
        if 'dot_general' not in line:
            continue
        left, right, out = (
            [int(n) for n in part.split('x')[:-1]]
            for part in [piece.split('>')[0] for piece in line.split('tensor<')[-3:]]
        )
        inner = int(np.sqrt(np.prod(left) * np.prod(right) / np.prod(out)))
        total += int(np.prod(out)) * inner
    assert total
    return total


def test_another_generator_of_random_numbers_is_an_obstacle():
    config = ModelConfig(vocab_size=70, d_model=64, num_heads=4, attention_dropout=0.1)
    finalize_model(config)
    assert choose_kernel(config, backend='cpu', segments=False) == AttentionKernel.BLOCKED
    with jax.default_prng_impl('rbg'):
        assert choose_kernel(config, backend='cpu', segments=False) == AttentionKernel.XLA
